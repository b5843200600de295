"""Turns SIGTERM and Ctrl-C into a clean stop: save, then leave."""

import signal
import threading

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop:
  """Context manager in which the first SIGTERM or SIGINT only sets a flag.

  The second one raises KeyboardInterrupt. The old handlers come back at the
  exit. Outside the main thread Python allows no handlers; there the flag stays
  False unless someone sets `requested`.

  Enter it after `jax.distributed.initialize`, which has a SIGTERM handler of
  its own.

  Attributes:
    requested: whether this process was asked to stop.
    signum: the signal that asked, or None. Once `should_stop` says so it is
      the same on each process.
  """

  def __init__(self, *, check_every: int = 1):
    """Makes the flag.

    Args:
      check_every: with several processes, every how many calls of
        `should_stop` the processes talk to each other. Each talk waits for the
        devices, so once in some tens of steps is enough.

    Raises:
      ValueError: check_every is below 1.
    """
    if check_every < 1:
      raise ValueError(f'check_every={check_every} must be at least 1')
    self.requested = False
    self.signum = None
    self._check_every = check_every
    self._calls = 0
    self._old = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._old = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
    return self

  def __exit__(self, *exc):
    for signum, handler in self._old.items():
      # None: the handler was not set from Python and cannot be put back.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    self._old = {}

  def _on_signal(self, signum, frame):
    del frame
    if self.requested:
      raise KeyboardInterrupt(f'second {signal.Signals(signum).name}')
    # One that comes after all have agreed to stop changes nothing of it.
    self.requested, self.signum = True, self.signum or signum
    logging.warning('%s: will save and stop after a step; a second one stops '
                    'at once and saves nothing', signal.Signals(signum).name)

  def should_stop(self) -> bool:
    """Says whether to stop now; the same answer on each process.

    Every process must call it equally often: with several processes it is a
    collective in which the flag of any one stops all.
    """
    if jax.process_count() == 1:
      return self.requested
    self._calls += 1
    if self._calls % self._check_every:
      return False
    asked, signums = multihost_utils.process_allgather(
        np.asarray([self.requested, self.signum or 0])).T
    if not asked.any():
      return False
    # SIGINT, the smaller one, comes first: launchers answer it by SIGTERM.
    self.signum = min(map(int, signums[signums > 0]), default=None)
    return True
