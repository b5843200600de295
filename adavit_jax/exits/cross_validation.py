"""Thresholds that lose no more accuracy on images they were not chosen on.

With several exits, the best thresholds on a few hundred images are those that
happen to let lucky images leave: on other images they lose points. Here the
thresholds are a function of one number, the price of a MAC, and of scores that
are smoothed over the confidence; the price is chosen by cross-validation.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.exits import held_out
from adavit_jax.exits import threshold_search

# Relative to the range of the total score over the MACs that exits can save.
_PRICES = np.geomspace(1e-3, 10, 64)
# Shares of the images above the thresholds of the lowest price, for thresholds
# that let fewer leave.
_SHARES = np.linspace(0.1, 0.9, 9)
_FOLDS = 5


class Estimate(NamedTuple):
  """Thresholds and what other images should lose by them.

  Attributes:
    thresholds: [E - 1] float64.
    lost: mean score lost against the last exit.
  """
  thresholds: np.ndarray
  lost: float


def losing_at_most(confidences, correct, stage_macs, *, lost):
  """Finds cheap thresholds that lose a given score against the last exit.

  See `estimates`. It is no promise: see `adavit_jax.calibrate` for one.

  Args:
    confidences: see `calibrate.evaluate`.
    correct: see `calibrate.evaluate`.
    stage_macs: see `calibrate.evaluate`.
    lost: see `cheapest`.

  Returns:
    `Calibration`, whose score and MACs are those of all images.

  Raises:
    ValueError: if lost is negative or NaN, or shapes do not match.
  """
  images = confidences, correct, stage_macs
  return calibrate.evaluate(*images, cheapest(estimates(*images), lost))


def cheapest(found, lost):
  """Returns the cheapest thresholds [E - 1] that lose at most a given score.

  Args:
    found: from `estimates`.
    lost: mean score that images may lose, at least 0.

  Raises:
    ValueError: if lost is negative or NaN.
  """
  if not lost >= 0:
    raise ValueError(f'lost={lost} must be at least 0')
  return [x.thresholds for x in found if x.lost <= lost + 1e-9][-1]


def estimates(confidences, correct, stage_macs):
  """Estimates the loss of a path of thresholds by cross-validation.

  Each of 64 prices has thresholds that maximize the smoothed score minus price
  x MACs; before the lowest come thresholds that let the most confident of its
  images leave. The loss is that of images outside of the folds that gave the
  thresholds, or that of all images if it is larger.

  Args:
    confidences: see `calibrate.evaluate`.
    correct: see `calibrate.evaluate`.
    stage_macs: see `calibrate.evaluate`.

  Returns:
    List of `Estimate`, by rising price; at the first, no image leaves
    early. It is the only one of a single image, which has no folds.

  Raises:
    ValueError: if shapes do not match.
  """
  images = held_out.HeldOut(confidences, correct, stage_macs)
  never = np.full(images.num_exits - 1, confidence_lib.NEVER)
  if images.num == 1:
    return [Estimate(never, 0.)]
  last = images.scores[-1]
  ends = np.zeros(len(_SHARES) + len(_PRICES))
  rows = np.random.default_rng(0).permutation(images.num)
  for fold in range(min(_FOLDS, images.num)):
    out = rows[fold::_FOLDS]
    rest = _part(confidences, correct, stage_macs, np.setdiff1d(rows, out))
    tested = held_out.HeldOut(
        *_part(confidences, correct, stage_macs, out))
    ends += [tested.totals(thresholds)[0] - last[out].sum()
             for thresholds in _path(*rest)]
  # The score falls with the price; where it rises, that is noise.
  ends = optimize.isotonic_regression(ends, increasing=False).x
  found = [Estimate(never, 0.)]
  for end, thresholds in zip(ends, _path(confidences, correct, stage_macs)):
    # At a price, all images may let many more leave than those of a fold did.
    least = min(end, images.totals(thresholds)[0] - last.sum())
    found.append(Estimate(thresholds, -least / images.num))
  return found


def smoothed(confidences, scores):
  """Smooths what each exit loses against the last over its confidence.

  Args:
    confidences: [E, n].
    scores: [E, n].

  Returns:
    [E, n]: the score of the last exit, plus an increasing function of an
    exit's confidence: that closest to its score minus the last one's, linear
    between the centers of its steps.
  """
  smooth = np.array(scores, np.float64)
  for e in range(len(smooth) - 1):
    # Images with equal confidence leave together, so they share a value.
    _, group, counts = np.unique(
        confidences[e], return_inverse=True, return_counts=True)
    change = np.bincount(group, smooth[e] - smooth[-1]) / counts
    fit = optimize.isotonic_regression(change, weights=counts)
    # Without steps, between which no price would lie.
    rank = np.cumsum(counts) - counts / 2
    centers = (np.add.reduceat(rank * counts, fit.blocks[:-1]) / fit.weights)
    smooth[e] = smooth[-1] + np.interp(
        rank, centers, fit.x[fit.blocks[:-1]])[group]
  return smooth


def _path(confidences, correct, stage_macs):
  """Returns the thresholds [E - 1] of each share and price, a list."""
  images = held_out.HeldOut(
      confidences, smoothed(confidences, correct), stage_macs)
  priced = threshold_search.by_price(images, _PRICES, confidence_lib.NEVER)
  fewer = np.full((len(_SHARES), images.num_exits - 1), confidence_lib.NEVER)
  for e, lowest in enumerate(priced[0]):
    above = images.confidences[e][images.confidences[e] > lowest]
    if len(above):
      fewer[:, e] = np.quantile(above, 1 - _SHARES)
  return [*fewer, *priced]


def _part(confidences, correct, stage_macs, rows):
  """Returns the arguments of `HeldOut` for some of the images."""
  macs = np.asarray(stage_macs)
  return (np.asarray(confidences)[:, rows], np.asarray(correct)[:, rows],
          macs[:, rows] if macs.ndim == 2 else macs)
