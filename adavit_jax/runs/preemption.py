"""Turns SIGTERM and Ctrl-C into a clean stop: save, then exit.

`loop.py` saves and stops. The exit status of `train.py` is 0 after SIGTERM and
130 after Ctrl-C.
"""

import signal
import threading

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from adavit_jax.runtime import stopping

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop:
  """Context manager in which the first SIGTERM or SIGINT only sets a flag.

  The second one raises KeyboardInterrupt. The old handlers are restored on
  exit. Python allows handlers only in the main thread; in other threads the
  flag stays False unless `requested` is set.

  Enter it after `jax.distributed.initialize`, which installs a SIGTERM handler.

  Attributes:
    requested: whether this process was asked to stop.
    signum: the signal that was received, or None. Once `should_stop` returns
      True, it is the same on all processes.
  """

  def __init__(self, *, check_every: int = 1):
    """Makes the flag.

    Args:
      check_every: with several processes, number of calls of `should_stop`,
        and of `check`, between synchronisations. Each one waits for the
        devices, so use some tens.

    Raises:
      ValueError: if check_every is below 1.
    """
    if check_every < 1:
      raise ValueError(f'check_every={check_every} must be at least 1')
    self.requested = False
    self.signum = None
    self._check_every = check_every
    self._calls = self._checks = 0
    self._old = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._old = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
    return self

  def __exit__(self, *exc):
    for signum, handler in self._old.items():
      # None: the handler was not set from Python and cannot be restored.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    self._old = {}

  def _on_signal(self, signum, frame):
    del frame
    if self.requested:
      raise KeyboardInterrupt(f'second {signal.Signals(signum).name}')
    # A signal after the processes agreed to stop must not change `signum`.
    self.requested, self.signum = True, self.signum or signum
    logging.warning('%s: saves and stops after this step or batch; a second '
                    'signal stops at once without saving',
                    signal.Signals(signum).name)

  def should_stop(self) -> bool:
    """Returns whether to stop now; the same on all processes.

    All processes must call it equally often: it is a collective operation, in
    which the flag of any process stops all of them.
    """
    if jax.process_count() == 1:
      return self.requested
    self._calls += 1
    return self._calls % self._check_every == 0 and self._agreed()

  def check(self):
    """Raises `stopping.Stopped` if any process was asked to stop.

    All processes must call it equally often, as `should_stop`.
    """
    asked = self.requested
    if jax.process_count() > 1:
      self._checks += 1
      asked = self._checks % self._check_every == 0 and self._agreed()
    if asked:
      raise stopping.Stopped

  def _agreed(self):
    """Returns whether any process was asked to stop; a collective operation.
    """
    asked, signums = multihost_utils.process_allgather(
        np.asarray([self.requested, self.signum or 0])).T
    if not asked.any():
      return False
    # SIGINT, the smaller number, takes precedence: launchers forward it as
    # SIGTERM.
    self.signum = min(map(int, signums[signums > 0]), default=None)
    return True
