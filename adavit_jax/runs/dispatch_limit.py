"""How far the host may be ahead of the devices."""

import collections
import time

import jax


class DispatchLimit:
  """Lets the host dispatch programs for about a second of the devices' time.

  They then always have work, and a signal need not wait for dozens of slow
  steps that were dispatched before it came.
  """

  def __init__(self, *, seconds=1., most=16, clock=time.monotonic):
    """Begins with no program ahead.

    Args:
      seconds: how much work may wait for the devices.
      most: how many programs may wait.
      clock: returns seconds, for tests.
    """
    self._seconds, self._most, self._clock = seconds, most, clock
    self._waiting = collections.deque()
    self._limit = 0
    self._at = clock()

  def add(self, out):
    """Takes the outputs of a program; may wait for those of earlier ones."""
    self._waiting.append(out)
    full = len(self._waiting) > self._limit
    while len(self._waiting) > self._limit:
      jax.block_until_ready(self._waiting.popleft())
    before, self._at = self._at, self._clock()
    if full:  # one is dispatched when another one is done
      each = max(self._at - before, 1e-9)
      self._limit = min(int(self._seconds / each), self._limit + 1, self._most)
