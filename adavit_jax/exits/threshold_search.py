"""Threshold search: the frontier of MACs and score, then a target.

A sweep tries every useful threshold of one exit with the others fixed, see
`HeldOut.sweep`. Up to three exits are searched exhaustively; more are improved
sweep by sweep. Points are tuples (thresholds [p, E - 1], total score [p], total
MACs [p]).
"""

import numpy as np

from adavit_jax.exits import confidence as confidence_lib

# Prices of a MAC that trace the frontier, relative to the range of the total
# score divided by the total MACs that exits can save.
_PRICES = np.geomspace(1e-3, 1e2, 32)
# Maximum number of passes over the exits; few are needed.
_PASSES = 20
# Three exits are searched exhaustively up to this number of first thresholds
# times images, which takes 2 seconds: 5000 images.
_EXHAUSTIVE = 3e7
# Otherwise, points spread evenly over the frontier are swept in rounds.
_SPREAD, _ROUNDS = 64, 20
# Number of points from which dominated ones are dropped, to bound the memory.
_MANY = 200_000


# Objectives map total score and MACs, [] or [c], to keys that are compared
# lexicographically; larger is better. The first key of `at_most` and `at_least`
# is 0 if the target is met. Their slack covers rounding errors of the sums.


def at_most(macs_limit):
  """Objective: the best score within a total of MACs."""
  limit = macs_limit * (1 + 1e-12)
  return lambda score, macs: (-np.maximum(macs - limit, 0), score, -macs)


def at_least(score_limit):
  """Objective: the fewest MACs with at least a total score."""
  limit = score_limit - 1e-9 * max(abs(score_limit), 1)
  return lambda score, macs: (-np.maximum(limit - score, 0), -macs, score)


def _priced(price):
  """Objective: score minus price x MACs."""
  return lambda score, macs: (score - price * macs, -macs)


def _first_best(keys):
  """Index of the largest of c keys, the first among equals."""
  rows = np.arange(len(keys[0]))
  for key in keys:
    rows = rows[key[rows] == key[rows].max()]
  return rows[0]


def _ascend(images, thresholds, objective):
  """Sets each threshold in turn to its best value until none changes.

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
      candidate = tuple(key[i] for key in keys)
      if candidate > best:
        thresholds[e], best = values[i], candidate
    if best == before:
      break
  return thresholds, best


def by_price(images, prices, start):
  """Returns thresholds [E - 1] for each price of a MAC, a list.

  Those of a price are the best by ascent from those of the price before.

  Args:
    images: `HeldOut`.
    prices: relative to the range of the total score over the total MACs that
      exits can save.
    start: threshold of all exits to begin with.
  """
  score_range = np.ptp(images.scores) * images.num or 1.
  saved = (images.macs[-1] - images.macs[0]).sum() or 1.
  thresholds = [np.full(images.num_exits - 1, start)]
  for price in prices:
    thresholds.append(_ascend(
        images, thresholds[-1], _priced(price * score_range / saved))[0])
  return thresholds[1:]


def _priced_thresholds(images):
  """List of thresholds [E - 1] to start from, for rising and falling prices."""
  never, always = confidence_lib.NEVER, confidence_lib.ALWAYS
  return [np.full(images.num_exits - 1, never),
          *by_price(images, _PRICES, never),
          np.full(images.num_exits - 1, always),
          *by_price(images, _PRICES[::-1], always)]


def _undominated(points):
  """The points that score higher than every cheaper one, ascending in MACs.

  Args:
    points: list of points.

  Returns:
    Points; only the first of equal ones.
  """
  thresholds, score, macs = map(np.concatenate, zip(*points))
  order = np.lexsort((-score, macs))
  order = order[_records(score[order])]
  return thresholds[order], score[order], macs[order]


def _records(values):
  """Whether each value exceeds all values before it, [c] bool."""
  before = np.maximum.accumulate(np.append(-np.inf, values[:-1]))
  return values > before


def _extend(images, points, starts, exits):
  """Extends points by sweeps.

  Args:
    images: `HeldOut`.
    points: list of points.
    starts: list of thresholds [E - 1] to sweep from.
    exits: indices of the exits to sweep.

  Returns:
    The undominated points.
  """
  points, num = list(points), 0
  for thresholds in starts:
    for e in exits:
      # MACs decrease along a sweep.
      values, score, macs = (x[::-1] for x in images.sweep(thresholds, e))
      rows = _records(score)
      moved = np.repeat(thresholds[None], rows.sum(), 0)
      moved[:, e] = values[rows]
      points.append((moved, score[rows], macs[rows]))
      num += len(moved)
      if num > _MANY:
        points, num = [_undominated(points)], 0
  return _undominated(points)


def frontier(images, most_starts=None):
  """Computes the frontier of score and MACs.

  It is exact for two exits, and for three exits up to `_EXHAUSTIVE`; otherwise
  from a local search.

  Args:
    images: `HeldOut`.
    most_starts: for three exits, tries so many thresholds of the first, evenly
      spaced over the images; None tries all of them.

  Returns:
    Points, ascending in score and in MACs.
  """
  exits = range(images.num_exits - 1)
  never = np.full(len(exits), confidence_lib.NEVER)
  starts = np.array([never])
  if len(exits) == 2:
    first = images.sweep(never, 0)[0]
    if most_starts is not None:
      first = first[np.unique(
          np.linspace(0, len(first) - 1, most_starts).astype(int))]
    starts = np.stack([first, np.full_like(first, confidence_lib.NEVER)], 1)
  if len(exits) <= 2 and len(starts) * images.num <= _EXHAUSTIVE:
    return _extend(images, [_point(images, never)], starts, exits[-1:])
  return _local_frontier(images, exits)


def _local_frontier(images, exits):
  """Searches the frontier from the best thresholds for each price of a MAC.

  Every exit is swept from points spread over the frontier until they no longer
  change.
  """
  points = _undominated([_point(images, t) for t in _priced_thresholds(images)])
  swept = set()
  for _ in range(_ROUNDS):
    thresholds, _, macs = points
    even = np.linspace(macs[0], macs[-1], _SPREAD)
    starts = [t for t in thresholds[np.unique(np.searchsorted(macs, even))]
              if t.tobytes() not in swept]
    if not starts:
      break
    swept.update(t.tobytes() for t in starts)
    points = _extend(images, [points], starts, exits)
  return points


def _point(images, thresholds):
  """The one point of thresholds [E - 1]."""
  score, macs = images.totals(thresholds)
  return thresholds[None], np.array([score]), np.array([macs])


def search(images, points, objective):
  """Searches the best thresholds for a target, starting from a frontier.

  Args:
    images: `HeldOut`.
    points: from `frontier`.
    objective: `at_most` or `at_least`.

  Returns:
    Thresholds [E - 1], or None if the target cannot be met.
  """
  thresholds, score, macs = points
  keys = objective(score, macs)
  # Start from both sides of the target: the best point that meets it, and the
  # one that misses it by least.
  starts = [_first_best(keys)]
  missed = np.flatnonzero(keys[0] < 0)
  if len(missed):
    starts.append(missed[keys[0][missed].argmax()])
  results = [_ascend(images, thresholds[i], objective) for i in starts]
  best, keys = max(results, key=lambda x: x[1])
  return None if keys[0] < 0 else best
