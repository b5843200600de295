"""What thresholds may lose against the full model, image by image.

The full model has all layers and no early exits. A risk is the expected loss of
one image. Losses need no probabilities, only predictions.
"""

from typing import NamedTuple

import numpy as np

from adavit_jax.promise import p_values

CLASSES = ('harm', 'gap', 'disagreement')
NUMBERS = ('error', 'disagreement')
UNLABELED = 'disagreement'


class Loss(NamedTuple):
  """A loss of one image and its limits.

  Attributes:
    kind: for classes, 'harm' is 1 if the full model is right and the adaptive
      one is wrong; 'gap' is the same, and -1 if only the adaptive one is right,
      so that its mean is the loss of accuracy, at most the harm;
      'disagreement' is 1 if they differ. For numbers, 'error' is the increase
      of the absolute error, and 'disagreement' the absolute difference; the
      increase of no image exceeds it.
    bound: the largest loss of an image; for numbers in their unit, and larger
      losses count as this one.
    unit: '' for classes, else the unit of the numbers.
  """
  kind: str
  bound: float
  unit: str

  def of(self, prediction, full, labels=None):
    """Computes the losses of n images.

    Args:
      prediction: of the adaptive model, [..., n].
      full: prediction of the full model, [n].
      labels: [n]; not read for 'disagreement'.

    Returns:
      [..., n] float64, at most `bound`.
    """
    if self.unit:
      prediction, full = (np.asarray(x, np.float64) for x in (prediction, full))
      if self.kind == 'disagreement':
        increase = np.abs(prediction - full)
      else:
        increase = np.abs(prediction - labels) - np.abs(full - labels)
      return np.minimum(increase, self.bound)
    if self.kind == 'disagreement':
      return (prediction != full).astype(np.float64)
    right, full_right = prediction == labels, full == labels
    if self.kind == 'harm':
      return (full_right & ~right).astype(np.float64)
    return full_right.astype(np.float64) - right

  def p_value(self, losses, risk):
    """p-value of the hypothesis that the expected loss exceeds `risk`.

    Args:
      losses: of n independent images, [n].
      risk: in (0, bound).

    Returns:
      A number in (0, 1].
    """
    num = len(losses)
    if self.unit:
      return p_values.betting(losses, risk, self.bound)
    if self.kind == 'gap':
      return p_values.paired(
          int((losses > 0).sum()), int((losses < 0).sum()), num, float(risk))
    return p_values.binomial(losses.sum(), num, risk)

  def upper_limit(self, losses, confidence):
    """The least risk that n losses reject: an upper confidence limit.

    Args:
      losses: of n independent images, [n].
      confidence: in (0, 1).

    Returns:
      A number in [0, bound].
    """
    if not self.unit and self.kind != 'gap':
      return p_values.binomial_limit(losses.sum(), len(losses), confidence)
    return p_values.limit(lambda risk: self.p_value(losses, risk),
                          1 - confidence, self.bound)

  def least_images(self, risk, confidence):
    """The number of images that can pass a test, if none of them has a loss."""
    return self.images_for(np.zeros(1), risk, confidence)

  def images_for(self, losses, risk, confidence, most=10**6):
    """The number of images with losses like these that would pass a test.

    Args:
      losses: of n images, [n].
      risk: in (0, bound).
      confidence: in (0, 1).
      most: None is returned instead of a larger number.

    Returns:
      An integer, about; None if the mean loss is too near to `risk`.
    """
    if not losses.mean() < risk:
      return None
    ordered = np.sort(losses)
    def passes(num):
      ranks = (np.arange(num) + .5) / num * len(losses)
      drawn = np.random.default_rng(0).permutation(ordered[ranks.astype(int)])
      return self.p_value(drawn, risk) <= 1 - confidence
    high = 1
    while not passes(high):
      high *= 2
      if high > most:
        return None
    low = high // 2  # fails, or is 0
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def create(kind, *, target=None, bound=None, labeled=True):
  """Makes a `Loss` for a task.

  Args:
    kind: one of `CLASSES` or `NUMBERS`; None for 'harm' or 'error' with labels,
      and 'disagreement' without.
    target: object with `std` and `unit` for a regression; None for classes.
    bound: the largest loss that is counted, for a regression; None for `std`.
    labeled: whether labels are given.

  Raises:
    ValueError: for an unknown kind, one that needs labels if there are none, or
      a bound that is not positive or is given for classes.
  """
  known = CLASSES if target is None else NUMBERS
  if kind is None:
    kind = known[0] if labeled else UNLABELED
  if kind not in known:
    raise ValueError(f'kind={kind!r}; known for '
                     f'{"classes" if target is None else "numbers"}: {known}')
  if kind != UNLABELED and not labeled:
    raise ValueError(f'labels=None: kind={kind!r} needs labels; give them, or '
                     f'use kind={UNLABELED!r}')
  if target is None:
    if bound is not None:
      raise ValueError(f'bound={bound} is for a regression; leave it out')
    return Loss(kind, 1., '')
  bound = target.std if bound is None else bound
  if not 0 < bound < np.inf:
    raise ValueError(f'bound={bound} must be positive: the largest increase of '
                     f'the error of one image that is counted')
  return Loss(kind, float(bound), target.unit)
