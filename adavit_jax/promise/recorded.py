"""Recorded outputs of a model on held-out images, under every setting.

A setting is a number of the policy, its threshold or price, and a confidence
threshold of each exit but the last. Models without a policy have one number,
those without exits one exit.
"""

from typing import NamedTuple

import numpy as np

from adavit_jax.exits import confidence as confidence_lib


class Setting(NamedTuple):
  """Thresholds.

  Attributes:
    policy: index of a number of the policy, 0 without a policy.
    exits: [E - 1] float64; images with a confidence above it leave.
  """
  policy: int
  exits: np.ndarray


class Recorded(NamedTuple):
  """Outputs for T numbers of a policy, E exits and n images.

  Attributes:
    knob: name of these numbers, or None without a policy.
    policy: T ascending numbers. The first stands for all layers and may be
      None; without a policy it is the only one.
    rule: name of the rule of the exits; None for one exit.
    prediction: [T, E, n], class or number.
    confidence: [T, E, n].
    macs: [T, E, n], MACs of each stage alone.
    full: [n], prediction of the full model.
    full_macs: MACs of the full model, without added exits and the layers that a
      static mask drops.
  """
  knob: str | None
  policy: tuple
  rule: str | None
  prediction: np.ndarray
  confidence: np.ndarray
  macs: np.ndarray
  full: np.ndarray
  full_macs: float

  @property
  def num(self):
    """n, the number of images."""
    return len(self.full)

  @property
  def never(self):
    """The `Setting` under which no image leaves early and no layer drops."""
    return Setting(0, np.full(self.confidence.shape[1] - 1,
                              confidence_lib.NEVER))

  def take(self, images):
    """Returns `Recorded` of some images, by their indices."""
    return self._replace(
        prediction=self.prediction[..., images], macs=self.macs[..., images],
        confidence=self.confidence[..., images], full=self.full[images])

  def exits(self, setting):
    """Returns the exit at which each image leaves, [n] int."""
    return confidence_lib.choose(
        self.confidence[setting.policy], setting.exits)

  def outcome(self, setting):
    """Returns (predictions [n], MACs [n]) under a setting."""
    exits, images = self.exits(setting), np.arange(self.num)
    macs = np.cumsum(self.macs[setting.policy], 0, dtype=np.float64)
    return (self.prediction[setting.policy, exits, images],
            macs[exits, images])

  def check(self):
    """Raises a ValueError if outputs are NaN."""
    wrong = np.isnan(self.confidence).any((0, 1))
    if self.prediction.dtype.kind == 'f':
      wrong |= np.isnan(self.prediction).any((0, 1)) | np.isnan(self.full)
    if wrong.any():
      raise ValueError(f'logits are NaN for {wrong.sum()} of {self.num} '
                       f'images; check that the model has not diverged')
