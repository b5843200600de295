"""A lease on a work directory, so that only one training writes there.

The holder's host and process stand in a file, which it renews. A lease whose
process is dead on this machine is free at once; one of another machine is free
if it was not renewed for a minute.
"""

import json
import os
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
    """
    self._lost = threading.Event()
    self._release = lambda: None
    error = None
    if jax.process_index() == 0:
      try:
        self._take(directory)
      except ValueError as refusal:
        error = refusal
    if jax.process_count() > 1 and not multihost_utils.process_allgather(
        np.array(error is None)).all():
      error = error or ValueError(
          f'another training writes in {directory.parent}: see process 0')
    if error is not None:
      raise error

  def _take(self, directory):
    path, mine = directory / 'lease.json', _record(directory)
    _wait_for(path, mine)
    _write_first(path, mine)
    stop = threading.Event()
    threading.Thread(
        target=_renew, args=(path, mine, stop, self._lost), daemon=True).start()
    self._release = weakref.finalize(self, _give_back, path, mine, stop)

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
  for read in (lambda: open('/proc/sys/kernel/random/boot_id').read().strip(),
               lambda: os.readlink('/proc/self/ns/pid')):
    try:
      parts.append(read())
    except OSError:  # not Linux
      pass
  return ' '.join(parts)


def _started(pid):
  """Start time of a process, since numbers are given again; '' if unknown."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[19]
  except OSError:
    return ''


def _identity(directory):
  """Differs for a copy of the directory on the same machine."""
  if '://' in str(directory):
    return str(directory)
  stat = os.stat(directory)
  return f'{stat.st_dev} {stat.st_ino}'


def _read(path):
  """Returns the record in the file, None if there is none or it is damaged."""
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

  Raises:
    ValueError: if its holder lives.
  """
  first, since = None, time.monotonic()
  while held := _read(path):
    if held['machine'] == mine['machine']:
      if held['directory'] != mine['directory'] or not _lives(held):
        return
      raise _refusal(path, held)
    if time.time() - held['time'] >= _EXPIRES_S:
      return
    if first is None:
      first = held
      logging.warning(
          '%s was in use by process %d on %s %.0f s ago: waiting up to %.0f s '
          'to see whether it still is', path.parent.parent, held['pid'],
          held['host'], time.time() - held['time'], _EXPIRES_S)
    elif held != first:
      raise _refusal(path, held)
    elif time.monotonic() - since >= _EXPIRES_S:
      return
    time.sleep(_POLL_S)


def _lives(held):
  try:
    os.kill(held['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # another user's
    pass
  return _started(held['pid']) == held['started']


def _refusal(path, held):
  return ValueError(
      f"another training, process {held['pid']} on {held['host']}, writes in "
      f'{path.parent.parent}: give another workdir, or stop it first')


def _write_first(path, mine):
  """Writes a record where no living holder's is.

  Raises:
    ValueError: if another process is faster.
  """
  text = json.dumps(mine)
  if '://' in str(path):
    path.write_text(text)
    time.sleep(2)  # an object store keeps what was written last
  else:
    free = not path.exists()
    path.unlink(missing_ok=True)
    try:
      with open(path, 'x') as file:
        file.write(text)
    except FileExistsError:
      pass
    if not free:  # another process may have unlinked this one's
      time.sleep(0.2)
  held = _read(path)
  if held is None or held['id'] != mine['id']:
    raise _refusal(path, held or mine)


def _renew(path, mine, stop, lost):
  while not stop.wait(_RENEW_S):
    try:
      held = _read(path)
      if held is not None and held['id'] != mine['id']:
        lost.set()
        return
      partial = epath.Path(f"{path}.{mine['id']}")
      partial.write_text(json.dumps({**mine, 'time': time.time()}))
      partial.replace(path)
    except Exception as error:  # of the file system; another attempt follows
      logging.warning('the lease %s could not be renewed: %s', path, error)


def _give_back(path, mine, stop):
  stop.set()
  if os.getpid() != mine['pid']:  # a forked process ends
    return
  try:
    held = _read(path)
    if held is not None and held['id'] == mine['id']:
      path.unlink(missing_ok=True)
  except OSError as error:
    logging.warning('the lease %s could not be given back: %s', path, error)
