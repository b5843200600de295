"""Notices that another process of a job died, and ends this one.

Collective operations wait for a dead process, or fail with an error that does
not name it.
"""

import atexit
import contextlib
import os
import re
import sys
import threading
import time

from absl import logging
import jax
from jax._src import distributed

from adavit_jax import errors
from adavit_jax.runs import witness

_FOLDER = 'adavit_jax/peers'
_LEFT = 'left'
_RESUMES = 'nothing that was saved is lost: the same command resumes'


@contextlib.contextmanager
def watched(interval=2., timeout=20.):
  """Ends this process with a sentence if another one dies meanwhile.

  Every process says that it lives in the store of JAX's coordinator, which is
  in process 0. One that is silent for `timeout`, or failed a quarter of it ago,
  ends the others: nothing can be computed or saved without it. If process 0 is
  killed, JAX ends the others at once, and `witness` says why. Nothing is
  watched where `jax.distributed` was not initialized. Devices are not touched.

  Args:
    interval: seconds between two signs of life.
    timeout: seconds of silence after which a process counts as dead.
  """
  # JAX says these publicly only after it has waited for all devices of the job.
  job = distributed.global_state
  if job.client is None or job.num_processes == 1:
    yield
    return
  watch = _Watch(job, interval, timeout)
  watch.start()
  try:
    yield
  except Exception as error:
    watch.leave(f'{type(error).__name__}: {error}')
    if not isinstance(error, errors.USER_ERRORS) or _is_of_xla(error):
      # Maybe because another one died; then the sentence names it.
      logging.exception('this process failed')
      time.sleep(2 * timeout)
    watch.exit_alone()
    raise
  except BaseException:
    watch.leave('an exit')
    watch.exit_alone()
    raise
  else:
    watch.leave(_LEFT)
  finally:
    watch.stop()


def _is_of_xla(error):
  """Whether it has a status of XLA; arrays raise a ValueError with it."""
  return re.match('[A-Z_]+: ', str(error)) is not None


class _Watch:
  """Writes the signs of life of this process and reads those of the others."""

  def __init__(self, job, interval, timeout):
    self._interval, self._timeout = interval, timeout
    self._client = job.client
    self._index, self._count = job.process_id, job.num_processes
    self._address = job.coordinator_address
    self._witness = None
    self._talker = threading.Thread(target=self._talk, daemon=True)
    self._how = None  # this process ends
    self._told = threading.Event()
    self._wake, self._stopped = threading.Event(), threading.Event()
    self._answered = time.monotonic()
    # (What it said last, when that was new) of each process.
    self._seen = [(None, self._answered)] * self._count

  def start(self):
    self._talker.start()
    if self._index == 0:  # which is in the coordinator's process
      return
    threading.Thread(target=self._wait_for_answers, daemon=True).start()
    with contextlib.suppress(OSError):
      self._witness = witness.Witness(
          self._address, f'error: process 0 of {self._count} died, and JAX '
          f'ended process {self._index} for it; {_RESUMES}')

  def leave(self, how):
    """Says how this process ends."""
    self._how = how
    self._wake.set()
    self._told.wait(2 * self._timeout)

  def exit_alone(self):
    """Lets this process end without waiting for the others, as JAX would."""
    # Process 0 waits until they know why, since JAX ends them with it.
    seconds = 0 if self._index else self._timeout / 2
    atexit.register(_exit, seconds)

  def stop(self):
    self._stopped.set()
    self._wake.set()
    self._talker.join(self._interval)
    if self._witness:
      self._witness.dismiss()

  def _talk(self):
    beats = 0
    while not self._stopped.is_set():
      how = self._how
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._client.key_value_set(
            f'{_FOLDER}/{self._index}', how or str(beats), allow_overwrite=True)
        self._look()
        self._answered = time.monotonic()
      if how:
        self._told.set()
      self._wake.wait(self._interval)
      self._wake.clear()
      beats += 1

  def _wait_for_answers(self):
    # A call to a coordinator whose machine is gone ends after minutes.
    while not self._stopped.wait(self._interval):
      silent = time.monotonic() - self._answered
      if silent > self._timeout:
        self._end(0, None, silent)

  def _look(self):
    now = time.monotonic()
    said = dict(self._client.key_value_dir_get(_FOLDER))
    for index, (before, since) in enumerate(self._seen):
      text = said.get(f'{_FOLDER}/{index}')
      if text != before:
        since = now
      self._seen[index] = text, since
      failed = text is not None and not text.isdigit()
      patience = self._timeout / 4 if failed else self._timeout
      if index != self._index and text != _LEFT and now - since > patience:
        self._end(index, text if failed else None, now - since)

  def _end(self, index, text, seconds):
    if self._stopped.is_set():  # an answer came late
      return
    how = (f'ended {seconds:.0f} s ago with {text}' if text else
           f'has shown no sign of life for {seconds:.0f} s')
    logging.error('process %d of %d %s; this one ends too, and %s', index,
                  self._count, how, _RESUMES)
    if self._witness:
      self._witness.dismiss()
    _exit()  # an ordinary exit would wait for the other process


def _exit(seconds=0.):
  """Ends this process, some seconds after its output is written."""
  logging.flush()
  sys.stdout.flush()
  sys.stderr.flush()
  time.sleep(seconds)
  os._exit(1)
