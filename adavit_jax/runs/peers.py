"""Notices that another process of a job died, and ends this one.

Collective operations wait for a dead process, or fail with an error that does
not name it.
"""

import contextlib
import os
import sys
import threading
import time

from absl import logging
import jax
from orbax import checkpoint as ocp

from adavit_jax.train import guards

_FOLDER = 'adavit_jax/peers'
_LEFT = 'left'


@contextlib.contextmanager
def watched(interval=2., timeout=20.):
  """Ends this process with a sentence if another one dies meanwhile.

  Every process says that it lives in the store of JAX's coordinator. One that
  is silent for `timeout`, or has failed, ends the others: nothing can be
  computed or saved without it. In a job of one process nothing is watched.

  Args:
    interval: seconds between two signs of life.
    timeout: seconds of silence after which a process counts as dead.
  """
  if jax.process_count() == 1:
    yield
    return
  watch = _Watch(interval, timeout)
  watch.start()
  try:
    yield
  except Exception as error:
    watch.leave(f'{type(error).__name__}: {error}')
    if not isinstance(error, guards.USER_ERRORS):
      # Maybe because another one died; then the sentence names it.
      logging.exception('this process failed')
      watch.wait()
    raise
  except BaseException:
    watch.leave('an exit')
    raise
  else:
    watch.leave(_LEFT)
  finally:
    watch.stop()


class _Watch:
  """Writes the signs of life of this process and reads those of the others."""

  def __init__(self, interval, timeout):
    self._interval, self._timeout = interval, timeout
    self._client = ocp.multihost.get_jax_distributed_client()
    self._key = f'{_FOLDER}/{jax.process_index()}'
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    # (What it said last, when that was new) of each process.
    self._seen = [(None, time.monotonic())] * jax.process_count()

  def start(self):
    self._say('0')
    self._thread.start()

  def stop(self):
    self._stopped.set()

  def leave(self, how):
    """Says how this process ends."""
    self.stop()
    self._thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._say(how)

  def wait(self):
    """Waits for news of the others; ends the process if one of them died."""
    until = time.monotonic() + 2 * self._timeout
    while time.monotonic() < until:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._look()
      time.sleep(self._interval)

  def _run(self):
    beats = 0
    while not self._stopped.wait(self._interval):
      beats += 1
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._say(str(beats))
        self._look()

  def _say(self, text):
    self._client.key_value_set(self._key, text, allow_overwrite=True)

  def _look(self):
    now = time.monotonic()
    said = dict(self._client.key_value_dir_get(_FOLDER))
    for index, (before, since) in enumerate(self._seen):
      text = said.get(f'{_FOLDER}/{index}')
      if text != before:
        since = now
      self._seen[index] = text, since
      if (index != jax.process_index() and text != _LEFT
          and now - since > self._timeout):
        self._end(index, text, now - since)

  def _end(self, index, text, seconds):
    how = (f'has shown no sign of life for {seconds:.0f} s'
           if text is None or text.isdigit() else
           f'ended {seconds:.0f} s ago with {text}')
    logging.error('process %d of %d %s; this one ends too, and nothing that '
                  'was saved is lost: the same command resumes', index,
                  jax.process_count(), how)
    logging.flush()
    sys.stderr.flush()
    os._exit(1)  # an ordinary exit would wait for the other process
