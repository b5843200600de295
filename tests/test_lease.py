"""The lease on a work directory: who may train there."""

import json
import os
import shutil
import subprocess
import threading
import time

from etils import epath
import numpy as np
import pytest

from adavit_jax.runs import checkpoints
from adavit_jax.runs import lease


@pytest.fixture
def directory(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, '_RENEW_S', 0.02)
  monkeypatch.setattr(lease, '_POLL_S', 0.02)
  monkeypatch.setattr(lease, '_EXPIRES_S', 0.3)
  (tmp_path / 'checkpoints').mkdir()
  return epath.Path(tmp_path / 'checkpoints')


def change(directory, /, **fields):
  """Rewrites a lease that nobody renews, with other fields."""
  held = lease.Lease(directory)
  path = directory / 'lease.json'
  record = json.loads(path.read_text())
  held.release()
  path.write_text(json.dumps({**record, **fields}))
  return path


def test_a_second_training_is_refused_until_the_first_ends(tmp_path):
  with checkpoints.Checkpoints(tmp_path):
    for _ in range(2):
      with pytest.raises(ValueError, match=f'process {os.getpid()} .*workdir'):
        checkpoints.Checkpoints(tmp_path)
    with checkpoints.Checkpoints(tmp_path, read_only=True):
      pass
  assert not (tmp_path / 'checkpoints' / 'lease.json').exists()
  with checkpoints.Checkpoints(tmp_path):
    pass


def test_an_object_that_is_gone_holds_nothing(directory):
  held = lease.Lease(directory)
  del held
  lease.Lease(directory)


@pytest.mark.parametrize('fields', [
    dict(pid=2**22 + 1), dict(started='1')], ids=['dead', 'number given again'])
def test_a_dead_process_of_this_machine_holds_nothing(directory, fields):
  change(directory, **fields)
  start = time.monotonic()
  held = lease.Lease(directory)
  held.check()
  assert time.monotonic() - start < 0.28  # without waiting for the end


def test_another_machine_is_waited_for(directory):
  change(directory, machine='other', host='other', time=time.time() + 100)
  start = time.monotonic()
  held = lease.Lease(directory)
  assert time.monotonic() - start >= 0.3
  held.check()


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='Linux')
def test_a_killed_process_that_its_parent_forgot_holds_nothing(directory):
  child = subprocess.Popen(['sleep', '60'])
  change(directory, pid=child.pid, started=lease._started(child.pid))
  with pytest.raises(ValueError, match=f'process {child.pid} '):
    lease.Lease(directory)
  child.kill()
  deadline = time.monotonic() + 5
  while lease._started(child.pid) != 'ended' and time.monotonic() < deadline:
    time.sleep(0.01)
  lease.Lease(directory).check()
  child.wait()


def test_a_process_whose_start_is_hidden_lives(directory, monkeypatch):
  change(directory)
  monkeypatch.setattr(lease, '_started', lambda pid: '')
  with pytest.raises(ValueError, match=f'process {os.getpid()} '):
    lease.Lease(directory)


@pytest.mark.parametrize('stale', [False, True])
def test_a_faster_process_keeps_its_lease(directory, stale):
  path = directory / 'lease.json'
  if stale:
    change(directory, pid=2**22 + 1)
  # Two processes find the lease free, and one writes first.
  mine = lease._record(directory)
  last = lease._wait_for(path, mine)
  faster = lease.Lease(directory)
  held = path.read_text()
  with pytest.raises(ValueError, match='another training'):
    lease._write_first(path, mine, last)
  assert json.loads(path.read_text())['id'] == json.loads(held)['id']
  faster.check()


def test_all_processes_hear_of_an_error_of_the_first(directory, monkeypatch):
  heard = []
  monkeypatch.setattr(lease.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(lease.multihost_utils, 'process_allgather',
                      lambda ok: heard.append(ok) or np.array([ok, True]))
  with pytest.raises(OSError):
    lease.Lease(directory / 'missing')
  assert heard == [False]


@pytest.mark.parametrize(
    'fields', [dict(machine='other'), dict(directory='mounted elsewhere')],
    ids=['machine', 'mount'])
def test_another_place_that_renews_is_refused(directory, fields, monkeypatch):
  monkeypatch.setattr(lease, '_EXPIRES_S', 5.)
  path = change(directory, host='far', time=time.time(), **fields)
  record = json.loads(path.read_text())
  renewed = threading.Timer(
      0.1, lambda: path.write_text(
          json.dumps({**record, 'time': time.time() + 1})))
  renewed.start()
  with pytest.raises(ValueError, match='far'):
    lease._wait_for(path, lease._record(directory))
  renewed.join()


def test_a_lease_of_long_ago_is_free(directory):
  change(directory, machine='other', time=time.time() - 1)
  lease.Lease(directory)


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', 'null'])
def test_a_damaged_file_is_no_lease(directory, text):
  (directory / 'lease.json').write_text(text)
  lease.Lease(directory).check()


def test_a_copy_of_a_running_training_is_free(directory, tmp_path):
  held = lease.Lease(directory)
  copy = tmp_path / 'copy'
  shutil.copytree(directory, copy)
  lease.Lease(epath.Path(copy)).check()
  held.check()


def test_what_was_taken_over_does_not_save(directory):
  with checkpoints.Checkpoints(directory.parent) as ckpts:
    path = directory / 'lease.json'
    record = json.loads(path.read_text())
    deadline = time.monotonic() + 5
    while not ckpts._lease._lost.is_set() and time.monotonic() < deadline:
      path.write_text(json.dumps({**record, 'id': 'other'}))
      time.sleep(0.05)
    with pytest.raises(ValueError, match='took over'):
      ckpts.save(1, {}, {})


def test_what_is_given_back_is_not_renewed(directory, monkeypatch):
  read, reading, go_on = lease._read, threading.Event(), threading.Event()

  def slow(path):
    record = read(path)
    if threading.current_thread() is not threading.main_thread():
      reading.set()
      go_on.wait(5)
    return record
  monkeypatch.setattr(lease, '_read', slow)
  held = lease.Lease(directory)
  assert reading.wait(5)
  held.release()
  go_on.set()
  time.sleep(0.1)
  assert not list(directory.iterdir())


def test_a_lease_is_renewed(directory):
  held = lease.Lease(directory)
  path = directory / 'lease.json'
  first = json.loads(path.read_text())['time']
  deadline = time.monotonic() + 5
  while time.monotonic() < deadline:
    if json.loads(path.read_text())['time'] > first:
      break
    time.sleep(0.02)
  assert json.loads(path.read_text())['time'] > first
  held.check()
