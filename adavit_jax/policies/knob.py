"""The number that moves a trained policy between accuracy and MACs.

It is the threshold of the policy networks or the price of a value policy.
`exits/calibrate.py` calibrates the thresholds of exits.
"""

from collections.abc import Callable
import dataclasses
import math
import numbers

from absl import logging
import jax
import numpy as np

from adavit_jax.policies import value

_STEPS = 12  # of the bisection


@dataclasses.dataclass(frozen=True)
class Knob:
  """A number that drops more layers the larger it is.

  Attributes:
    name: 'threshold' or 'price'.
    low, high: positions between which it is sought.
    at: function from a position to the number.
    range: the numbers that it may be, an open interval.
  """
  name: str
  low: float
  high: float
  at: Callable[[float], float]
  range: tuple[float, float]

  def check(self, number):
    """Raises a ValueError unless `number` is one within the range."""
    low, high = self.range
    if not (isinstance(number, (numbers.Real, np.ndarray, jax.Array))
            and np.ndim(number) == 0 and low < number < high):
      raise ValueError(f'{self.name}={number!r} must be a number in ({low:g}, '
                       f'{high:g})')

  def sweep(self, num):
    """Returns `num` numbers that cover two thirds of the positions."""
    middle, half = (self.low + self.high) / 2, (self.high - self.low) / 3
    return [self.at(x) for x in np.linspace(middle - half, middle + half, num)]


def _sigmoid(logit):
  return 1 / (1 + math.exp(-logit))


# What decides (`PolicyNets.decide`) and its knob.
KNOBS = {
    'networks': Knob('threshold', -6., 6., _sigmoid, (0., 1.)),
    'value': Knob('price', *map(math.log, value.PRICES), math.exp,
                  (0., math.inf)),
}


def calibrate(knob, macs_ratio, target):
  """Finds the number at which a policy meets a budget.

  Args:
    knob: `Knob`.
    macs_ratio: function of a number in its range that returns the mean MACs of
      held-out images over the dense model's. They fall as the number rises.
    target: the budget, as a share of the dense model's MACs.

  Returns:
    A number. If none meets the budget, the highest one, with a warning.
  """
  low, high = knob.low, knob.high
  if (least := macs_ratio(knob.at(high))) > target:
    logging.warning('no %s meets %.3f of the MACs: at %.4f the policy still '
                    'takes %.3f', knob.name, target, knob.at(high), least)
  for _ in range(_STEPS):
    middle = (low + high) / 2
    low, high = ((middle, high) if macs_ratio(knob.at(middle)) > target
                 else (low, middle))
  return knob.at(high)
