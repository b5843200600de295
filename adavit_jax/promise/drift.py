"""Says when a mean leaves its bound, at any time, in a stream of losses."""

import numpy as np

from adavit_jax.promise import p_values

# Number of means between the bound and the largest loss that are tested for
# the lower limit.
_MEANS = 32
# Number of losses that are added at once.
_BLOCK = 256


class LowerLimit:
  """Lower confidence limit of a mean that holds at all times at once.

  A confidence sequence by betting (Waudby-Smith and Ramdas, 2024): it may be
  looked at after every loss. While the mean is at most `bound`, the limit ever
  exceeds it with probability at most 1 - confidence.

  Attributes:
    bound: see `__init__`.
    confidence: see `__init__`.
    num: number of losses seen.
    mean: their mean, or 0.
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
    self._largest = largest
    self._means = np.unique(np.concatenate([
        np.geomspace(bound / 100, bound, _MEANS // 2),
        np.geomspace(bound, largest, _MEANS // 2)]))[:-1]
    self._log_wealth = np.zeros((len(self._means), len(p_values.BETS)))
    self.num, self._sum, self.limit = 0, 0., 0.

  @property
  def mean(self):
    return self._sum / max(self.num, 1)

  @property
  def exceeded(self):
    """Whether the limit has exceeded the bound."""
    return self.limit >= self.bound

  def update(self, losses):
    """Adds losses.

    Args:
      losses: [n], from 0 to `largest`, in the order of the images.

    Returns:
      The number of these losses after which the bound was exceeded for the
      first time, or None.
    """
    losses, first = np.asarray(losses, np.float64), None
    for start in range(0, len(losses), _BLOCK):
      block = losses[start:start + _BLOCK, None, None]
      wealth = self._log_wealth + np.cumsum(np.log1p(
          p_values.BETS * (block / self._means[:, None] - 1)), 0)
      self._log_wealth = wealth[-1]
      # The wealth falls as the mean rises: a limit rejects all means below.
      rejected = p_values.mix(wealth) >= -np.log1p(-self.confidence)
      limits = np.where(rejected, self._means, 0.).max(1)
      if first is None and not self.exceeded and limits.max() >= self.bound:
        first = start + int((limits >= self.bound).argmax()) + 1
      self.limit = max(self.limit, float(limits.max()))
    self.num += len(losses)
    self._sum += float(losses.sum())
    return first
