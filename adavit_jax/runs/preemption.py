"""Turns SIGTERM and Ctrl-C into a clean stop: save, then exit.

`loop.py` saves and stops. The exit status of `train.py` is 0 after SIGTERM and
130 after Ctrl-C.
"""

import signal
import threading

from absl import logging
import jax
from orbax import checkpoint as ocp

from adavit_jax.runs import agreement
from adavit_jax.runtime import stopping

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop:
  """Context manager in which the first SIGTERM or SIGINT only sets a flag.

  The second one raises KeyboardInterrupt. The old handlers are restored on
  exit. Python allows handlers only in the main thread; in other threads the
  flag stays False.

  With several processes, the flag of any of them stops all of them. All must
  enter it equally often, after `jax.distributed.initialize`, which installs a
  SIGTERM handler, and call `should_stop` and `check` in the same order.

  Attributes:
    requested: whether this process was asked to stop.
    signum: the signal that was received, or None. Once `should_stop` returns
      True, it is the same on all processes.
  """

  def __init__(self):
    self.requested = False
    self.signum = None
    self._agreement = None
    self._old = {}

  def __enter__(self):
    if jax.process_count() > 1:
      self._agreement = agreement.Agreement(
          ocp.multihost.get_jax_distributed_client(), jax.process_index(),
          jax.process_count())
    if threading.current_thread() is threading.main_thread():
      self._old = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
    return self

  def __exit__(self, *exc):
    for signum, handler in self._old.items():
      # None: the handler was not set from Python and cannot be restored.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    self._old = {}
    if self._agreement:
      self._agreement.close()

  def _on_signal(self, signum, frame):
    del frame
    if self.requested:
      raise KeyboardInterrupt(f'second {signal.Signals(signum).name}')
    # A signal after the processes agreed to stop must not change `signum`.
    self.requested, self.signum = True, self.signum or signum
    if self._agreement:
      self._agreement.ask(signum)
    logging.warning('%s: saves and stops after this step or batch; a second '
                    'signal stops at once without saving',
                    signal.Signals(signum).name)

  def should_stop(self) -> bool:
    """Returns whether to stop after a step; the same on all processes."""
    return self._agreed()

  def check(self):
    """Raises `stopping.Stopped` if the processes stop between two steps."""
    if self._agreed():
      raise stopping.Stopped

  def _agreed(self):
    if self._agreement is None:
      return self.requested
    if not self._agreement.reached():
      return False
    self.signum = self._agreement.signum
    return True
