"""Says when a mean leaves its bound, at any time, in a stream of losses."""

import math

import numpy as np

from adavit_jax.promise import p_values

# Number of means between the bound and the largest loss, and below the bound,
# that are tested for the lower limit.
_MEANS = 16
# Wealth is not counted beyond this.
_MOST = 1e100


class LowerLimit:
  """Lower confidence limit of the largest mean so far, valid at all times.

  A confidence sequence by betting (Waudby-Smith and Ramdas, 2024): it may be
  looked at after every loss. If the expectation of every loss is at most m, the
  limit ever reaches m with probability at most 1 - confidence. Part of the
  wealth enters the bets at every loss, so that a change after a long time is
  found too.

  Attributes:
    bound: see `__init__`.
    confidence: see `__init__`.
    num: number of losses seen.
    limit: the lower limit, one of a grid of means.
  """

  def __init__(self, bound, confidence, largest=1.):
    """Starts without losses.

    Args:
      bound: in (0, largest), a value of the limit's grid.
      confidence: in (0, 1).
      largest: the largest possible loss.

    Raises:
      ValueError: if an argument is out of range.
    """
    if not 0 < bound < largest:
      raise ValueError(f'bound={bound} must be between 0 and the largest loss, '
                       f'{largest:g}')
    if not 0 < confidence < 1:
      raise ValueError(f'confidence={confidence} must be between 0 and 1')
    self.bound, self.confidence = bound, confidence
    self._means = np.unique(np.concatenate([
        np.geomspace(bound / 100, bound, _MEANS),
        np.geomspace(bound, largest, _MEANS)]))[:-1]
    self._bet = np.zeros((len(self._means), len(p_values.BETS)))
    self.num, self._sum, self.limit = 0, 0., 0.

  @property
  def mean(self):
    """Mean of the losses, 0 before the first."""
    return self._sum / max(self.num, 1)

  @property
  def exceeded(self):
    """Whether the limit has reached the bound."""
    return self.limit >= self.bound

  def update(self, losses):
    """Adds losses.

    Args:
      losses: [n], from 0 to `largest`, in the order of the images.

    Returns:
      The number of these losses after which the bound was reached for the first
      time, or None.
    """
    first = None
    for i, loss in enumerate(np.asarray(losses, np.float64)):
      kept = _kept(self.num + 1)
      self._bet += _kept(self.num) - kept
      self._bet *= 1 + p_values.BETS * (loss / self._means[:, None] - 1)
      np.minimum(self._bet, _MOST, out=self._bet)
      # The wealth falls as the mean rises: a limit rejects all means below.
      rejected = self._bet.mean(1) + kept >= 1 / (1 - self.confidence)
      self.num, self._sum = self.num + 1, self._sum + loss
      if rejected.any():
        before = self.exceeded
        self.limit = max(self.limit, float(self._means[rejected].max()))
        if self.exceeded and not before:
          first = i + 1
    return first


def _kept(num):
  """The share of the wealth that has not entered the bets after n losses."""
  return 1 / (1 + math.log1p(num))
