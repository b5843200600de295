"""Processes of a job agree on the call at which all of them stop.

Each counts its calls, which are the same in all of them. A process that is
asked to stop says so in the store of JAX's coordinator. The others hear of it
at once, in a thread; then each says how many calls it has made and makes no
other before it knows what all have said. They stop at the call after the last
of these. Until then, a call costs nothing and does not wait for devices.
"""

import contextlib
import itertools
import threading

import jax

_FOLDER = 'adavit_jax/stop'
_numbers = itertools.count()  # all processes open them in the same order


class Agreement:
  """When to stop, for one process of a job.

  Attributes:
    signum: once they have agreed, the signal by which all stop; None if they
      were not asked by one. SIGINT, the smaller number, takes precedence:
      launchers forward it as SIGTERM.
  """

  def __init__(self, client, process, num_processes):
    """Begins to listen.

    Args:
      client: that of JAX's coordinator.
      process: number of this process.
      num_processes: of the job.
    """
    self.signum = None
    self._client = client
    self._process, self._num_processes = process, num_processes
    self._folder = f'{_FOLDER}/{next(_numbers)}'
    self._changed = threading.Condition()
    self._calls, self._asked_by = 0, 0
    self._said = self._stop_at = None
    self._closed = threading.Event()
    threading.Thread(target=self._listen, daemon=True).start()

  def ask(self, signum):
    """Asks all processes to stop; may be called by a signal handler."""
    self._asked_by = signum
    threading.Thread(
        target=self._set, args=('asked', 'yes'), daemon=True).start()

  def reached(self):
    """Returns whether this is the call at which all stop, or a later one."""
    with self._changed:
      self._calls += 1
      if self._said is not None:
        self._changed.wait_for(lambda: self._stop_at is not None)
      return self._stop_at is not None and self._calls >= self._stop_at

  def close(self):
    """Comes after the last call: the others do not wait for this process."""
    self._say()
    self._closed.set()

  def _listen(self):
    if self._get('asked') is None:
      return
    self._say()
    said = [self._get(f'said/{i}') for i in range(self._num_processes)]
    if None in said:
      return
    calls, signums = zip(*(map(int, text.split()) for text in said))
    with self._changed:
      self.signum = min(filter(None, signums), default=None)
      self._stop_at = max(calls) + 1
      self._changed.notify_all()

  def _say(self):
    with self._changed:
      if self._said is not None:
        return
      self._said = f'{self._calls} {int(self._asked_by)}'
    self._set(f'said/{self._process}', self._said)

  def _set(self, key, text):
    # Without process 0 it fails, and `peers` ends this one.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(
          f'{self._folder}/{key}', text, allow_overwrite=True)

  def _get(self, key):
    """Waits for the value of a key; None if it is closed meanwhile."""
    while not self._closed.wait(0.01):
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # none in a second
        return self._client.blocking_key_value_get(
            f'{self._folder}/{key}', 1000)
    return None
