"""Refuses calls in a forked process, where they would wait for ever."""

import os


class Guard:
  """Made where programs are made; checked before they run.

  A forked process has none of the threads of JAX.
  """

  def __init__(self):
    self._pid = os.getpid()

  def check(self):
    """Raises a RuntimeError in a process forked from the one that made it."""
    if os.getpid() != self._pid:
      raise RuntimeError(
          f'this process {os.getpid()} was forked from {self._pid}, and JAX '
          f"does not run in forks: use the start method 'spawn' or "
          f"'forkserver', or fork first and load the model in the forks alone")
