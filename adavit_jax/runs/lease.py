"""A lease on a work directory, so that only one training writes there.

The holder's host and process stand in a file, which it renews. A lease whose
process is dead on this machine is free at once; one of another machine is free
if it was not renewed for a minute.
"""

import json
import os
import pathlib
import socket
import threading
import time
import uuid
import weakref

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

_RENEW_S = 15.
_EXPIRES_S = 60.
_POLL_S = 1.


class Lease:
  """A held lease; `release` or the end of the process gives it back."""

  def __init__(self, directory):
    """Takes the lease; all processes of a job must make the same call.

    Args:
      directory: `epath.Path` of an existing directory.

    Raises:
      ValueError: if another training holds it.
      OSError: if its file cannot be written.
    """
    self._lost = threading.Event()
    self._release = lambda: None
    error = None
    if jax.process_index() == 0:
      try:
        self._take(directory)
      except (ValueError, OSError) as refusal:
        error = refusal  # raised behind the call that the others wait in
    if jax.process_count() > 1 and not multihost_utils.process_allgather(
        np.array(error is None)).all():
      error = error or ValueError(
          f'process 0 has no lease on {directory.parent}: see its error')
    if error is not None:
      raise error

  def _take(self, directory):
    path, mine = directory / 'lease.json', _record(directory)
    _write_first(path, mine, _wait_for(path, mine))
    # Python may give the lease back in the thread that renews it.
    stop, lock = threading.Event(), threading.RLock()
    threading.Thread(target=_renew, args=(path, mine, stop, lock, self._lost),
                     daemon=True).start()
    self._release = weakref.finalize(self, _give_back, path, mine, stop, lock)

  def check(self):
    """Raises a ValueError if another training took the lease over."""
    if self._lost.is_set():
      raise ValueError('another training took over the work directory, since '
                       'this one did not renew its lease for a minute: stop '
                       'one of them')

  def release(self):
    """Gives the lease back; may be called again."""
    self._release()


def _record(directory):
  """What identifies this holder of the lease of a directory."""
  pid = os.getpid()
  return dict(id=uuid.uuid4().hex, host=socket.gethostname(),
              machine=_machine(), pid=pid, started=_started(pid),
              directory=_identity(directory), time=time.time())


def _machine():
  """Differs between machines, and between containers of one."""
  parts = [socket.gethostname()]
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  for read in (lambda: boot.read_text().strip(),
               lambda: os.readlink('/proc/self/ns/pid')):
    try:
      parts.append(read())
    except OSError:  # not Linux
      pass
  return ' '.join(parts)


def _started(pid):
  """Start time of a process, since numbers are given again.

  Returns:
    '' if unknown, 'ended' if only its parent still knows of it.
  """
  try:
    with open(f'/proc/{pid}/stat') as file:
      fields = file.read().rpartition(')')[2].split()
  except OSError:
    return ''
  return 'ended' if fields[0] in 'ZX' else fields[19]


def _identity(directory):
  """Differs for a copy of the directory, and for another mount of it."""
  if '://' in str(directory):
    return str(directory)
  stat = os.stat(directory)
  return f'{stat.st_dev} {stat.st_ino}'


def _read(path):
  """Returns the record in the file, or None if it is missing or damaged."""
  for _ in range(10):
    try:
      record = json.loads(path.read_text())
      return record if 'machine' in record else None
    except FileNotFoundError:
      return None
    except (ValueError, TypeError):  # its holder may be writing it
      time.sleep(0.05)
  return None


def _wait_for(path, mine):
  """Waits until a lease is free.

  Returns:
    The record of its last holder, or None without a holder.

  Raises:
    ValueError: if its holder lives.
  """
  first, since = None, time.monotonic()
  while held := _read(path):
    if held['machine'] == mine['machine']:
      if not _lives(held):
        return held
      if held['directory'] == mine['directory']:
        raise _refusal(path, held)
    if time.time() - held['time'] >= _EXPIRES_S:
      return held
    if first is None:
      first = held
      logging.warning(
          '%s was in use by process %d on %s %.0f s ago: waiting up to %.0f s '
          'to see whether it still is', path.parent.parent, held['pid'],
          held['host'], time.time() - held['time'], _EXPIRES_S)
    elif held != first:
      raise _refusal(path, held)
    elif time.monotonic() - since >= _EXPIRES_S:
      return held
    time.sleep(_POLL_S)
  return None


def _lives(held):
  try:
    os.kill(held['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # another user's
    pass
  started = _started(held['pid'])
  return started in ('', held['started'])  # some systems hide other users'


def _refusal(path, held):
  return ValueError(
      f"another training, process {held['pid']} on {held['host']}, writes in "
      f'{path.parent.parent}: give another workdir, or stop it first')


def _write_first(path, mine, last):
  """Writes a record where there is none, or that of the last holder.

  Raises:
    ValueError: if another process is faster.
  """
  text = json.dumps(mine)
  if '://' in str(path):
    path.write_text(text)
    time.sleep(2)  # an object store keeps what was written last
  else:
    old = path.exists()
    if old and _read(path) == last:
      path.unlink(missing_ok=True)
    try:
      with open(path, 'x') as file:
        file.write(text)
    except FileExistsError:
      pass
    if old:  # another process may have unlinked this one's
      time.sleep(0.2)
  held = _read(path)
  if held is None or held['id'] != mine['id']:
    raise _refusal(path, held or mine)


def _renew(path, mine, stop, lock, lost):
  while not stop.wait(_RENEW_S):
    try:
      held = _read(path)
      if held is not None and held['id'] != mine['id']:
        lost.set()
        return
      text = json.dumps({**mine, 'time': time.time()})
      if '://' in str(path):  # an object is written whole, or not at all
        with lock:
          if not stop.is_set():
            path.write_text(text)
        continue
      partial = epath.Path(f"{path}.{mine['id']}")
      partial.write_text(text)
      with lock:
        if stop.is_set():
          partial.unlink()
        else:
          partial.replace(path)
    except Exception as error:  # of the file system; another attempt follows
      logging.warning('the lease %s could not be renewed: %s', path, error)


def _give_back(path, mine, stop, lock):
  if os.getpid() != mine['pid']:  # a forked process ends
    return
  with lock:
    stop.set()
    try:
      held = _read(path)
      if held is not None and held['id'] == mine['id']:
        path.unlink(missing_ok=True)
    except OSError as error:
      logging.warning('the lease %s could not be given back: %s', path, error)
