"""The search for thresholds: one exit after the other, each exactly."""

import numpy as np

from adavit_jax.exits import confidence as confidence_lib

# Prices of a MAC that trace the frontier, as shares of what all scores are
# worth over all MACs that exits can save.
_PRICES = np.geomspace(1e-3, 1e2, 32)
# Passes over the exits at most; each raises the objective, and few are needed.
_PASSES = 20


class Images:
  """The held-out images, sorted once per exit."""

  def __init__(self, confidences, correct, stage_macs):
    self.confidences = np.asarray(confidences, np.float64)
    self.scores = np.asarray(correct, np.float64)
    self.macs = np.cumsum(np.asarray(stage_macs, np.float64))
    shape = self.confidences.shape
    if (len(shape) != 2 or not self.confidences.size
        or self.scores.shape != shape or self.macs.shape != shape[:1]):
      raise ValueError(
          f'confidences {shape}, correct {self.scores.shape} and stage_macs '
          f'{self.macs.shape} must be [E, n], [E, n] and [E], n > 0')
    if np.isnan(self.confidences).any() or np.isnan(self.scores).any():
      raise ValueError('confidences and correct must hold no NaN; evaluate a '
                       'model that has not diverged')
    self.num_exits, self.num = shape
    self.order = np.argsort(-self.confidences[:-1], axis=1, kind='stable')

  def totals(self, thresholds):
    """(score, MACs) summed over the images."""
    chosen = confidence_lib.choose(self.confidences, thresholds)
    return (self.scores[chosen, np.arange(self.num)].sum(),
            self.macs[chosen].sum())

  def sweep(self, thresholds, exit_index):
    """Every useful threshold of one exit, the others as they are.

    Returns:
      (thresholds [c], total score [c], total MACs [c]), falling thresholds:
      from no image to every image that gets there.
    """
    leaves = self.confidences[:-1] > thresholds[:, None]
    gone = leaves[:exit_index].any(0)
    later = np.concatenate([leaves[exit_index + 1:],
                            np.ones((1, self.num), bool)]).argmax(0)
    other = np.where(gone, leaves.argmax(0), exit_index + 1 + later)
    rows = self.order[exit_index]
    # Those that get there and may leave, the surest first.
    rows = rows[~gone[rows]
                & (self.confidences[exit_index, rows] > confidence_lib.ALWAYS)]
    images = np.arange(self.num)
    score, macs = self.scores[other, images], self.macs[other]
    more = self.scores[exit_index, rows] - score[rows]
    less = self.macs[exit_index] - macs[rows]
    values = self.confidences[exit_index, rows]
    # A candidate after every image; images of one confidence leave together.
    last = np.append(values[1:] < values[:-1], [True] * bool(len(rows)))
    cut = np.flatnonzero(np.append(True, last))
    bounds = np.concatenate(
        [[confidence_lib.NEVER], values, [confidence_lib.ALWAYS]])
    between = bounds[:-1] / 2 + bounds[1:] / 2
    between[-1] = confidence_lib.ALWAYS
    between[0] = confidence_lib.NEVER
    prefix = lambda x: np.append(0., np.cumsum(x))[cut]
    return (between[cut], score.sum() + prefix(more),
            macs.sum() + prefix(less))


# Objectives take total score and MACs, [] or [c], and return keys that are
# compared one after the other, larger is better. The first is 0 where the
# target is met. The slack covers the rounding of sums.


def at_most(macs_limit):
  limit = macs_limit * (1 + 1e-12)
  return lambda score, macs: (-np.maximum(macs - limit, 0), score, -macs)


def at_least(score_limit):
  limit = score_limit - 1e-9 * max(abs(score_limit), 1)
  return lambda score, macs: (-np.maximum(limit - score, 0), -macs, score)


def _priced(price):
  return lambda score, macs: (score - price * macs, -macs)


def _first_best(keys):
  """Index of the largest of c keys, the first among equals."""
  rows = np.arange(len(keys[0]))
  for key in keys:
    rows = rows[key[rows] == key[rows].max()]
  return rows[0]


def _ascend(images, thresholds, objective):
  """Sets one threshold after the other to its best value until none moves.

  Returns:
    (thresholds [E - 1], keys of the objective).
  """
  thresholds = thresholds.copy()
  best = tuple(objective(*images.totals(thresholds)))
  for _ in range(_PASSES):
    before = best
    for e in range(images.num_exits - 1):
      values, score, macs = images.sweep(thresholds, e)
      keys = objective(score, macs)
      i = _first_best(keys)
      found = tuple(key[i] for key in keys)
      if found > best:
        thresholds[e], best = values[i], found
    if best == before:
      break
  return thresholds, best


def frontier(images):
  """Thresholds that are best for a price of a MAC, for rising prices.

  Returns:
    (thresholds [p, E - 1], total score [p], total MACs [p]).
  """
  worth = np.ptp(images.scores) * images.num or 1.
  saved = (images.macs[-1] - images.macs[0]) * images.num or 1.
  found = []
  for start, prices in ((confidence_lib.NEVER, _PRICES),
                        (confidence_lib.ALWAYS, _PRICES[::-1])):
    thresholds = np.full(images.num_exits - 1, start)
    found.append(thresholds)
    for price in prices:
      thresholds, _ = _ascend(
          images, thresholds, _priced(price * worth / saved))
      found.append(thresholds)
  totals = np.array([images.totals(t) for t in found])
  return np.array(found), totals[:, 0], totals[:, 1]


def search(images, points, objective):
  """Thresholds [E - 1] that are best for a target; None if none meets it."""
  thresholds, score, macs = points
  keys = objective(score, macs)
  # From both sides of the target: the best point that meets it, and the one
  # that misses it by least.
  starts = [_first_best(keys)]
  missed = np.flatnonzero(keys[0] < 0)
  if len(missed):
    starts.append(missed[keys[0][missed].argmax()])
  found = [_ascend(images, thresholds[i], objective) for i in starts]
  best, keys = max(found, key=lambda x: x[1])
  return None if keys[0] < 0 else best
