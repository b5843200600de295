"""Calibrates the thresholds of exits to a target on held-out images."""

from typing import NamedTuple

import numpy as np

from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.exits import held_out
from adavit_jax.exits import shares as shares_lib
from adavit_jax.exits import threshold_search


class Calibration(NamedTuple):
  """Thresholds and their results on the held-out images.

  Attributes:
    thresholds: [E - 1] float64.
    accuracy: mean score.
    macs: mean MACs of one image.
    shares: [E], share of the images that leave at each exit.
  """
  thresholds: np.ndarray
  accuracy: float
  macs: float
  shares: np.ndarray

  def as_dict(self):
    """Converts to a dict of numbers and lists for JSON."""
    return dict(thresholds=self.thresholds.tolist(), accuracy=self.accuracy,
                macs=self.macs, shares=self.shares.tolist())


def evaluate(confidences, correct, stage_macs, thresholds):
  """Computes accuracy and MACs for the given thresholds.

  Args:
    confidences: [E, n], higher is more confident.
    correct: [E, n] bool, or any score where higher is better, e.g. minus the
      absolute error for regression.
    stage_macs: [E], MACs of each stage alone; [E, n] if images differ.
    thresholds: [E - 1], or one number for all exits.

  Returns:
    `Calibration`.

  Raises:
    ValueError: if shapes do not match.
  """
  return _calibration(
      held_out.HeldOut(confidences, correct, stage_macs),
      confidence_lib.check_thresholds(thresholds, len(confidences)))


def calibrate(confidences, correct, stage_macs, *, max_macs=None,
              min_accuracy=None, same_accuracy=False):
  """Finds the best thresholds for one target.

  The result is optimal for two exits, and for three exits with up to 5000
  images. Otherwise it is the best point of a frontier from a local search, and
  each threshold is optimal given the others. Takes seconds for 5000 images.

  Args:
    confidences: see `evaluate`.
    correct: see `evaluate`.
    stage_macs: see `evaluate`.
    max_macs: upper bound of the mean MACs of one image; maximizes accuracy.
    min_accuracy: lower bound of the mean score; minimizes MACs.
    same_accuracy: use the accuracy of the last exit on all images as
      min_accuracy.

  Returns:
    `Calibration`. Each threshold is midway between the confidences of two
    images.

  Raises:
    ValueError: if not exactly one target is given, the target cannot be met, or
      shapes do not match.
  """
  images = held_out.HeldOut(confidences, correct, stage_macs)
  targets = [max_macs is not None, min_accuracy is not None, same_accuracy]
  if sum(targets) != 1:
    raise ValueError(
        f'max_macs={max_macs}, min_accuracy={min_accuracy}, same_accuracy='
        f'{same_accuracy}: give exactly one target')
  if max_macs is not None:
    least = _least_macs(images)
    if not max_macs >= least:
      raise ValueError(
          f'max_macs={max_macs:g} cannot be met: if every image leaves at the '
          f'first possible exit, the mean is {least:g} MACs')
    objective = threshold_search.at_most(max_macs * images.num)
  else:
    if same_accuracy:
      min_accuracy = images.scores[-1].mean()
    if not np.isfinite(min_accuracy):
      raise ValueError(f'min_accuracy={min_accuracy} must be a number')
    objective = threshold_search.at_least(min_accuracy * images.num)
  frontier = threshold_search.frontier(images)
  best = threshold_search.search(images, frontier, objective)
  if best is None:
    most = _calibration(
        images, threshold_search.search(
            images, frontier, threshold_search.at_most(np.inf))).accuracy
    raise ValueError(
        f'min_accuracy={min_accuracy:g} cannot be met: the best that these '
        f'exits reach is {most:g}')
  return _calibration(images, best)


def curve(confidences, correct, stage_macs, *, num=50):
  """Computes the trade-off between accuracy and MACs.

  Args:
    confidences: see `evaluate`.
    correct: see `evaluate`.
    stage_macs: see `evaluate`.
    num: number of MAC budgets, evenly spaced from all images at the first exit
      to all images at the last exit.

  Returns:
    List of `Calibration.as_dict()`, the cheapest first, ascending in MACs and
    accuracy; dominated points are left out.
  """
  images = held_out.HeldOut(confidences, correct, stage_macs)
  frontier = threshold_search.frontier(images)
  points = []
  for budget in np.linspace(_least_macs(images), images.macs[-1].mean(), num):
    best = threshold_search.search(
        images, frontier, threshold_search.at_most(budget * images.num))
    point = _calibration(images, best)
    if not points or point.accuracy > points[-1].accuracy:
      points.append(point)
  return [p.as_dict() for p in points]


def share_curve(confidences, correct, stage_macs):
  """Computes the trade-off as DVT's paper draws it, see `shares`.

  Args:
    confidences: see `evaluate`.
    correct: see `evaluate`.
    stage_macs: see `evaluate`.

  Returns:
    List of 59 `Calibration.as_dict()`, from shares that favor the first exit
    to shares that favor the last; points may be dominated by others.
  """
  images = held_out.HeldOut(confidences, correct, stage_macs)
  return [
      _calibration(images, shares_lib.thresholds(images.confidences, row))
      .as_dict() for row in shares_lib.geometric(images.num_exits)]


CURVES = {'best': curve, 'shares': share_curve}


def _least_macs(images):
  """Mean MACs if every image leaves at the first possible exit."""
  always = np.full(images.num_exits - 1, confidence_lib.ALWAYS)
  return images.totals(always)[1] / images.num


def _calibration(images, thresholds):
  chosen = confidence_lib.choose(images.confidences, thresholds)
  score, macs = images.totals(thresholds)
  return Calibration(
      np.asarray(thresholds), float(score / images.num),
      float(macs / images.num),
      np.bincount(chosen, minlength=images.num_exits) / images.num)
