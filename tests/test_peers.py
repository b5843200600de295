"""Processes of a job that die or fail end the others; one that is done not."""

import threading
import time

from adavit_jax.runs import peers
import jax
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
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 0)
  monkeypatch.setattr(peers.ocp.multihost, 'get_jax_distributed_client',
                      lambda: store)
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
  # Such as that of a collective operation.
  store['adavit_jax/peers/1'] = '7'
  with pytest.raises(_Ended):
    with peers.watched(interval=0.02, timeout=0.1):
      raise RuntimeError('connection closed')
  assert exits == [1] and 'RuntimeError: connection closed' in caplog.text


def test_a_job_of_one_process_is_not_watched(monkeypatch):
  monkeypatch.setattr(peers, '_Watch', None)
  _run(0.)
