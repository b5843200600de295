"""Calibrates the threshold of a policy to a budget of MACs.

`exits/calibrate.py` does the same for the thresholds of exits.
"""

import math

from absl import logging

# In logits. Each step of the bisection halves this range.
_RANGE = -6., 6.
_STEPS = 10


def calibrate(macs_ratio, target):
  """Finds the threshold at which a policy meets a budget.

  Args:
    macs_ratio: function of a threshold in (0, 1) that returns the mean MACs of
      held-out images over the dense model's. They fall as the threshold rises.
    target: the budget, as a share of the dense model's MACs.

  Returns:
    A threshold in (0, 1). If none meets the budget, the highest one, with a
    warning.
  """
  low, high = _RANGE
  if (least := macs_ratio(_sigmoid(high))) > target:
    logging.warning('no threshold meets %.3f of the MACs: at %.4f the policy '
                    'still takes %.3f', target, _sigmoid(high), least)
  for _ in range(_STEPS):
    middle = (low + high) / 2
    low, high = ((middle, high) if macs_ratio(_sigmoid(middle)) > target
                 else (low, middle))
  return _sigmoid(high)


def _sigmoid(logit):
  return 1 / (1 + math.exp(-logit))
