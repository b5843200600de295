"""Thresholds for a target, from the confidences of held-out images."""

from typing import NamedTuple

import numpy as np

from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.exits import threshold_search


class Calibration(NamedTuple):
  """Thresholds and what they gave on the held-out images.

  Attributes:
    thresholds: [E - 1] float64.
    accuracy: mean score.
    macs: mean MACs of one image.
    shares: [E], share of the images that left at each exit.
  """
  thresholds: np.ndarray
  accuracy: float
  macs: float
  shares: np.ndarray

  def as_dict(self):
    """Plain numbers and lists, for JSON."""
    return dict(thresholds=self.thresholds.tolist(), accuracy=self.accuracy,
                macs=self.macs, shares=self.shares.tolist())


def evaluate(confidences, correct, stage_macs, thresholds):
  """What given thresholds cost and reach.

  Args:
    confidences: [E, n], larger is surer.
    correct: [E, n] bool, or any score of which more is better: minus the
      absolute error for regression.
    stage_macs: [E], MACs of each stage alone; [E, n] where images differ.
    thresholds: [E - 1], or one number for all exits.

  Returns:
    `Calibration`.

  Raises:
    ValueError: if shapes do not fit.
  """
  return _calibration(
      threshold_search.Images(confidences, correct, stage_macs),
      confidence_lib.check_thresholds(thresholds, len(confidences)))


def calibrate(confidences, correct, stage_macs, *, max_macs=None,
              min_accuracy=None, same_accuracy=False):
  """Finds the best thresholds for one target.

  With two exits they are the best there are, with three too up to 5000 images.
  With more, they are the best of a frontier that a local search found, and each
  threshold is the best there is given the others. Seconds with 5000 images.

  Args:
    confidences: see `evaluate`.
    correct: see `evaluate`.
    stage_macs: see `evaluate`.
    max_macs: the most MACs that an image may cost in the mean; the accuracy is
      as high as it gets.
    min_accuracy: the least mean score; the MACs are as few as they get.
    same_accuracy: True for the accuracy that all images reach at the last exit.

  Returns:
    `Calibration`. A threshold lies midway between two images' confidences.

  Raises:
    ValueError: not exactly one target, one that cannot be met, or shapes that
      do not fit.
  """
  images = threshold_search.Images(confidences, correct, stage_macs)
  given = [max_macs is not None, min_accuracy is not None, same_accuracy]
  if sum(given) != 1:
    raise ValueError(
        f'max_macs={max_macs}, min_accuracy={min_accuracy}, same_accuracy='
        f'{same_accuracy}: give exactly one target')
  if max_macs is not None:
    least = _least_macs(images)
    if not max_macs >= least:
      raise ValueError(
          f'max_macs={max_macs:g} cannot be met: images that leave as soon as '
          f'they can cost {least:g} MACs')
    objective = threshold_search.at_most(max_macs * images.num)
  else:
    if same_accuracy:
      min_accuracy = images.scores[-1].mean()
    objective = threshold_search.at_least(min_accuracy * images.num)
  frontier = threshold_search.frontier(images)
  best = threshold_search.search(images, frontier, objective)
  if best is None:
    most = _calibration(
        images, threshold_search.search(
            images, frontier, threshold_search.at_most(np.inf))).accuracy
    raise ValueError(
        f'min_accuracy={min_accuracy:g} cannot be met: the best found with '
        f'these exits is {most:g}')
  return _calibration(images, best)


def curve(confidences, correct, stage_macs, *, num=50):
  """Accuracy against MACs over all budgets.

  Args:
    confidences: see `evaluate`.
    correct: see `evaluate`.
    stage_macs: see `evaluate`.
    num: budgets, evenly spaced from the first exit alone to the last alone.

  Returns:
    List of `Calibration.as_dict()`, ascending in MACs and in accuracy: points
    that cost more and reach no more are left out. The first is the cheapest.
  """
  images = threshold_search.Images(confidences, correct, stage_macs)
  frontier = threshold_search.frontier(images)
  points = []
  for budget in np.linspace(_least_macs(images), images.macs[-1].mean(), num):
    best = threshold_search.search(
        images, frontier, threshold_search.at_most(budget * images.num))
    point = _calibration(images, best)
    if not points or point.accuracy > points[-1].accuracy:
      points.append(point)
  return [p.as_dict() for p in points]


def _least_macs(images):
  """Mean MACs of an image if all leave at the first exit that lets them."""
  always = np.full(images.num_exits - 1, confidence_lib.ALWAYS)
  return images.totals(always)[1] / images.num


def _calibration(images, thresholds):
  chosen = confidence_lib.choose(images.confidences, thresholds)
  score, macs = images.totals(thresholds)
  return Calibration(
      np.asarray(thresholds), float(score / images.num),
      float(macs / images.num),
      np.bincount(chosen, minlength=images.num_exits) / images.num)
