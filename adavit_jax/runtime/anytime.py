"""A cascade that answers within a time budget, given with the images.

The deadline is checked between stages: a stage starts only if, by a high
quantile of its time, it ends before the deadline. The first stage always runs.
Budgets that vary and are not known before are the aim of Multi-Exit ViT (arXiv
2106.15183).
"""

import math
import numbers
import threading
import time
from typing import NamedTuple

import numpy as np

from adavit_jax import describe
from adavit_jax.runtime import stage_times


class TimedPrediction(NamedTuple):
  """Results of B images within a budget; NumPy arrays.

  Attributes:
    logits: [B, K] float32, at the exit that answered.
    labels: [B], as of a `CascadePrediction`.
    exit: [B] int, the exit that answered, 0 for the first.
    macs: [B], MACs of all stages that ran on the image.
    milliseconds: float, from the call to the answer.
    in_time: bool, whether that is at most the budget.
  """
  logits: np.ndarray
  labels: np.ndarray
  exit: np.ndarray
  macs: np.ndarray
  milliseconds: float
  in_time: bool

  def __repr__(self):
    return describe.record(
        self, labels=describe.values, exit=describe.values,
        macs=describe.mean_macs, milliseconds='{:.4g}'.format)


class Anytime:
  """Runs a cascade within budgets. Threads may share it."""

  def __init__(self, cascade):
    """Measures nothing yet.

    Args:
      cascade: `Cascade`.
    """
    self._cascade = cascade
    self._times = stage_times.StageTimes(cascade.num_stages)
    self._measured = set()  # numbers of images
    self._lock = threading.Lock()

  def measure(self, images, *, again=True):
    """Compiles and times all stages for up to n images.

    Args:
      images: [n, S, S, C], n >= 1, like those to come.
      again: also with batch sizes that were timed before.

    Returns:
      [E] milliseconds until each exit of all n images, medians.

    Raises:
      ValueError: if the cascade has one stage, or n is more than its batch
        size.
    """
    cascade, num = self._cascade, len(images)
    if cascade.num_stages == 1:
      raise ValueError('within a budget, a model with a single exit has no '
                       'earlier answer; load a model with several exits')
    if num > cascade.batch_size:
      raise ValueError(f'{num} images are more than max_batch_size='
                       f'{cascade.batch_size}, the most that share a budget; '
                       f'load the model with a larger max_batch_size')
    with self._lock:
      stage_times.measure(cascade, images, self._times, again=again)
      self._measured.add(num)
    return 1e3 * np.cumsum([
        self._times.base(k, self._sizes(k, num, num))
        for k in range(cascade.num_stages)])

  def __call__(self, images, milliseconds, quantile, start=None):
    """Classifies images within a budget.

    Args:
      images: [n, S, S, C], as of `measure`.
      milliseconds: the budget, from `check_budget`.
      quantile: from `check_quantile`.
      start: when the budget began, of `time.perf_counter`; None for now.

    Returns:
      `TimedPrediction`.

    Raises:
      ValueError: as `measure`.
    """
    start = time.perf_counter() if start is None else start
    num = len(images)
    if num not in self._measured:
      self.measure(images, again=False)
      start = time.perf_counter()
    clock = _Clock(self._times, lambda k, left: self._sizes(k, left, num),
                   start + milliseconds / 1e3, quantile)
    prediction = self._cascade(images, clock.may_start)
    taken = 1e3 * (time.perf_counter() - start)
    clock.finish()
    return TimedPrediction(*prediction, taken, taken <= milliseconds)

  def _sizes(self, k, num, num_images):
    if num_images == 1:
      return (stage_times.ONE,)
    return self._cascade.batches(k, num)


class _Clock:
  """Times the stages of one call, and decides whether the next one starts."""

  def __init__(self, times, sizes, deadline, quantile):
    self._times, self._sizes = times, sizes
    self._deadline, self._quantile = deadline, quantile
    self._running = None  # (stage, batch sizes, when it started)
    self._ended = None

  def may_start(self, k, num):
    """As a `Cascade` asks it."""
    now = self._end()
    sizes = self._sizes(k, num)
    if k and now + self._times.predict(
        k, sizes, self._quantile) > self._deadline:
      return False
    self._running = k, sizes, now
    return True

  def _end(self):
    """Notes that the stage that runs has ended; returns the time."""
    now = time.perf_counter()
    if self._running is not None:
      k, sizes, start = self._running
      self._running = None
      self._ended = k, self._times.observe(k, sizes, now - start)
    return now

  def finish(self):
    """Notes that no other stage starts."""
    self._end()
    k, ratio = self._ended
    self._times.carry_over(k + 1, ratio)


def check_budget(milliseconds):
  """Returns a budget as a float.

  Raises:
    ValueError: unless it is a positive number; infinity is one.
  """
  if not _is_number(milliseconds) or not milliseconds > 0:
    raise ValueError(f'milliseconds={milliseconds!r} must be a positive number')
  return float(milliseconds)


def check_quantile(quantile):
  """Returns a quantile as a float.

  Raises:
    ValueError: unless it is a number in (0, 1).
  """
  if not _is_number(quantile) or not 0 < quantile < 1:
    raise ValueError(f'quantile={quantile!r} must be a number in (0, 1)')
  return float(quantile)


def _is_number(x):
  return isinstance(x, numbers.Real) and not isinstance(x, bool) and (
      not math.isnan(x))
