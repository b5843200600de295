"""Settings to test, from safe to cheap, and the images to find them on."""

import numpy as np

from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.exits import held_out
from adavit_jax.exits import threshold_search
from adavit_jax.promise.recorded import Setting

# Shares of the images that leave under the safest setting of the frontier, for
# settings that are safer still.
_SAFER = np.arange(1, 10) / 10
# The most settings of a frontier, and thresholds of the first of three exits
# for it: more only fit the few images.
_MOST, _MOST_STARTS = 100, 32
# Number of thresholds of a single exit.
_GRID = 40
# Share of the images to find settings on, and their largest number: testing
# needs the others more.
SEARCH_SHARE, _SEARCH_MOST = 1 / 3, 1000


def in_known_order(recorded, num_classes):
  """Settings of a single threshold, which need no images to be found.

  Args:
    recorded: `Recorded`.
    num_classes: K; read for the rules of classes.

  Returns:
    List of `Setting`, or None if there are several thresholds, or a rule whose
    confidences have no known range.
  """
  num_policy, num_exits = shape = recorded.confidence.shape[:2]
  if not has_known_order(shape, recorded.rule):
    return None
  if num_exits == 1:
    return [Setting(t, np.zeros(0)) for t in range(num_policy)]
  return [Setting(0, np.array([t]))
          for t in _GRIDS[recorded.rule](num_classes)]


def has_known_order(shape, rule):
  """Returns whether there is one threshold, in a known range.

  Args:
    shape: (T, E), the numbers of thresholds of the policy and of exits.
    rule: of the exits, or None.
  """
  return shape[1] == 1 or tuple(shape) == (1, 2) and rule in _GRIDS


_FRACTIONS = np.geomspace(1e-5, 1, _GRID)
# Descending thresholds of an exit, for K classes, independent of any image.
_GRIDS = {
    'max_probability': lambda num: 1 - _FRACTIONS * (1 - 1 / num),
    'margin': lambda num: 1 - _FRACTIONS,
    'entropy': lambda num: -_FRACTIONS * np.log(num),
    'patience': lambda num: [.5],
    'agreement': lambda num: []}  # needs an exit before


def num_search(num):
  """The number of n images on which settings are found."""
  return min(round(num * SEARCH_SHARE), _SEARCH_MOST)


def frontier(recorded, losses):
  """Finds settings on images that are not used to test them.

  They are the frontier of mean MACs and loss over all thresholds (Pareto
  testing, Laufer-Goldenberg et al., 2023), behind safer ones under which fewer
  images leave.

  Args:
    recorded: `Recorded` of these images.
    losses: [T, E, n].

  Returns:
    List of `Setting`, from safe to cheap.
  """
  points = []  # (MACs, loss, setting)
  for t, loss in enumerate(losses):
    images = held_out.HeldOut(
        recorded.confidence[t], -loss, recorded.macs[t])
    points += [(macs, -score, Setting(t, thresholds))
               for thresholds, score, macs in zip(
                   *threshold_search.frontier(images, _MOST_STARTS))]
  points.sort(key=lambda point: point[:2])
  undominated = []  # the cheapest first
  for _, loss, setting in points:
    if not undominated or loss < undominated[-1][0]:
      undominated.append((loss, setting))
  settings = [setting for _, setting in reversed(undominated)]
  rows = np.linspace(0, len(settings) - 1, min(_MOST, len(settings)))
  settings = [settings[int(i)] for i in rows]
  return _safer(recorded, settings[0]) + settings


def _safer(recorded, setting):
  """Settings under which a rising share of the images of one leave."""
  exits, steps = recorded.exits(setting), []
  for share in _SAFER:
    policy = int(share * setting.policy)
    thresholds = []
    for e, threshold in enumerate(setting.exits):
      confidence = recorded.confidence[policy, e][exits == e]
      confidence = confidence[confidence > threshold]
      if len(confidence):
        threshold = max(threshold, np.quantile(
            confidence.astype(np.float64), 1 - share))
      else:
        threshold = confidence_lib.NEVER
      thresholds.append(threshold)
    steps.append(Setting(policy, np.array(thresholds)))
  return steps
