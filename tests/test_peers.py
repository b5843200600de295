"""Processes of a job that die or fail end the others; one that is done not."""

import signal
import socket
import threading
import time
import types
from unittest import mock

from adavit_jax.runs import peers
from adavit_jax.runs import witness
import jax
import processes
import pytest


class _Store(dict):
  """The coordinator's, as far as it is used."""

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite
    self[key] = value

  def key_value_dir_get(self, folder):
    return [(k, v) for k, v in self.items() if k.startswith(folder + '/')]


class _Ended(BaseException):
  """Where the process would have ended."""


@pytest.fixture
def store(monkeypatch):
  """The store of a job of two processes; this one is process 0."""
  store = _Store()
  monkeypatch.setattr(peers.distributed, 'global_state', types.SimpleNamespace(
      client=store, num_processes=2, process_id=0, coordinator_address=''))
  monkeypatch.setattr(peers.atexit, 'register', lambda *_: None)
  return store


@pytest.fixture
def exits(monkeypatch):
  """Statuses of exits; each ends the thread that asks for it."""
  codes = []
  def end(code):
    codes.append(code)
    raise _Ended
  monkeypatch.setattr(peers.os, '_exit', end)
  monkeypatch.setattr(threading, 'excepthook', lambda args: None)
  return codes


def _run(seconds=0.25):
  with peers.watched(interval=0.02, timeout=0.1):
    time.sleep(seconds)


@pytest.mark.parametrize('says, sentence', [
    (None, 'process 1 of 2 has shown no sign of life'),
    ('7', 'process 1 of 2 has shown no sign of life for 0 s; this one ends'),
    ('OSError: disk', 'process 1 of 2 ended 0 s ago with OSError: disk;')])
def test_one_that_died_or_failed_ends_this_one(
    store, exits, caplog, says, sentence):
  if says:
    store['adavit_jax/peers/1'] = says
  _run()
  assert exits == [1] and sentence in caplog.text


def test_one_that_lives_or_is_done_does_not(store, exits):
  store['adavit_jax/peers/1'] = 'left'
  _run()
  assert not exits and store['adavit_jax/peers/0'] == 'left'

  stop = threading.Event()
  def live():
    beats = 0
    while not stop.wait(0.02):
      beats += 1
      store['adavit_jax/peers/1'] = str(beats)
  thread = threading.Thread(target=live)
  thread.start()
  _run()
  stop.set()
  thread.join()
  assert not exits


def test_an_error_is_told_to_the_others_and_blamed_on_a_dead_one(
    store, exits, caplog):
  store['adavit_jax/peers/1'] = 'left'
  with pytest.raises(ValueError, match='^width'):
    with peers.watched(interval=0.02, timeout=0.1):
      raise ValueError('width')
  assert store['adavit_jax/peers/0'] == 'ValueError: width' and not exits
  # Such as those of a collective operation.
  for error in (RuntimeError('connection closed'),
                ValueError('UNKNOWN: Gloo AllGather failed')):
    exits.clear()
    store['adavit_jax/peers/1'] = '7'
    with pytest.raises(type(error)):
      with peers.watched(interval=0.02, timeout=0.1):
        raise error
    assert exits == [1] and f'{type(error).__name__}: {error}' in caplog.text


def test_a_job_of_one_process_is_not_watched(monkeypatch):
  monkeypatch.setattr(peers, '_Watch', None)
  _run(0.)


def test_a_silent_coordinator_ends_this_process(
    store, exits, monkeypatch, caplog):
  peers.distributed.global_state.process_id = 1
  monkeypatch.setattr(peers.witness, 'Witness', mock.Mock())
  store['adavit_jax/peers/0'] = 'left'
  # As of a machine that is gone: the call ends after minutes.
  monkeypatch.setattr(
      store, 'key_value_dir_get', lambda folder: time.sleep(1) or [])
  _run()
  assert exits == [1] and 'process 0 of 2 has shown no sign of life' in (
      caplog.text)
  peers.witness.Witness.return_value.dismiss.assert_called()


@pytest.mark.parametrize('alive, dismissed', [
    (False, False), (True, False), (False, True)])
def test_a_witness_speaks_of_the_death_of_process_0(capfd, alive, dismissed):
  with socket.socket() as coordinator:
    coordinator.bind(('127.0.0.1', 0))
    coordinator.listen()
    address = f'127.0.0.1:{coordinator.getsockname()[1]}'
    process = witness.Witness(address, 'it died')
    coordinator.accept()[0].close()  # it has looked
    if not alive:
      coordinator.close()
    if dismissed:
      process.dismiss()
    else:  # as if this process ended
      process._process.stdin.close()
      assert process._process.wait(10) == 0
  assert capfd.readouterr().err == 'it died\n' * (not alive and not dismissed)


def _main(index, port):
  """One of a job; they compute together until one is killed."""
  import jax.numpy as jnp
  jax.distributed.initialize(
      f'127.0.0.1:{port}', num_processes=2, process_id=index,
      heartbeat_timeout_seconds=60)
  with peers.watched(timeout=4.):
    print(jnp.arange(3.).sum(), flush=True)
    time.sleep(60)


@pytest.mark.nightly
@pytest.mark.parametrize('victim, status', [
    (0, (1, -signal.SIGABRT)), (1, (1,))])
def test_one_that_is_killed_is_named_by_the_other(tmp_path, victim, status):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  both = [processes.Process(tmp_path, _main, i, port) for i in range(2)]
  until = time.monotonic() + 100
  while not all(p.out for p in both) and time.monotonic() < until:
    time.sleep(0.05)
  both[victim].send(signal.SIGKILL)
  other = both[1 - victim]
  assert other.wait(30) in status
  time.sleep(0.5)  # for the witness
  assert f'process {victim} of 2 ' in other.err.splitlines()[-1]
