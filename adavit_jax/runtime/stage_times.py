"""How long the stages of a cascade take, learned from what they took.

Every stage has a base, its median time for each batch size. What is learned
afterwards are ratios to the base: a busy machine slows all stages and sizes, so
that a few stages that ran tell about those that did not.
"""

import collections
import math
import statistics
import time

import numpy as np

# Ratios that are remembered of each stage.
_WINDOW = 100
# A stage is timed at least, and at most, this often, for these seconds.
_LEAST, _MOST, _SECONDS = 10, 50, 0.5
# The batch size that stands for one image without a buffer.
ONE = 0


class StageTimes:
  """Predicts quantiles of the time of each stage."""

  def __init__(self, num_stages):
    """Knows nothing yet.

    Args:
      num_stages: E.
    """
    self._base = {}  # (stage, batch size) -> seconds
    self._ratios = [collections.deque(maxlen=_WINDOW)
                    for _ in range(num_stages)]

  def add(self, k, size, seconds):
    """Adds measured seconds of stage k in one batch; sets their base."""
    base = self._base[k, size] = statistics.median(seconds)
    self._ratios[k].extend(s / base for s in seconds)

  def base(self, k, sizes):
    """Median seconds of stage k, in batches of the given sizes."""
    return sum(self._base[k, size] for size in sizes)

  def knows(self, k, size):
    """Whether stage k was measured with a batch size."""
    return (k, size) in self._base

  def predict(self, k, sizes, quantile):
    """A quantile of the seconds of stage k, in batches of the given sizes."""
    ratios = sorted(self._ratios[k])
    place = min(math.floor(quantile * len(ratios)), len(ratios) - 1)
    return ratios[place] * self.base(k, sizes)

  def observe(self, k, sizes, seconds):
    """Adds the seconds that stage k took; returns their ratio to the base."""
    ratio = seconds / self.base(k, sizes)
    self._ratios[k].append(ratio)
    return ratio

  def carry_over(self, k, ratio):
    """Adds the ratio of the last stage that ran to those from k on.

    A stage that is refused has no times of its own; without this, it would be
    refused for ever after a busy moment.
    """
    for ratios in self._ratios[k:]:
      ratios.append(ratio)


def measure(cascade, images, times, *, again):
  """Compiles and times every stage, with all batch sizes that may occur.

  Args:
    cascade: `Cascade`.
    images: [n, S, S, C], n at most the cascade's batch size.
    times: `StageTimes`, which learns them.
    again: also batch sizes that it knows.
  """
  cascade.guard.check()
  if len(images) == 1:
    _time(lambda k, state: cascade.programs[k](images, state), cascade, ONE,
          times)
    return
  sizes = {size for k in range(cascade.num_stages)
           for num in range(1, len(images) + 1)
           for size in cascade.batches(k, num)}
  for size in sorted(sizes):
    if times.knows(0, size) and not again:
      continue
    buffer = cascade.make_buffer(images, stream=False)
    slots = np.arange(min(size, len(images)))
    buffer.admit(images[slots], slots, [size])
    _time(lambda k, _: (None, *buffer.run(k, slots, [size])), cascade, size,
          times)


def _time(run, cascade, size, times):
  """Times `run`, (stage, state) -> (state, logits, confidence, ...)."""
  seconds = [[] for _ in range(cascade.num_stages)]
  started = None
  for i in range(_MOST + 2):
    state = None
    for k, taken in enumerate(seconds):
      start = time.perf_counter()
      state, _, confidence, *_ = run(k, state)
      np.asarray(confidence)  # waits for it
      taken.append(time.perf_counter() - start)
    if i == 1:  # the first calls compile
      started = time.perf_counter()
    if i > _LEAST and time.perf_counter() - started > _SECONDS:
      break
  for k, taken in enumerate(seconds):
    times.add(k, size, taken[2:])
