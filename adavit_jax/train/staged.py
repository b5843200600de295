"""Model and cost of a run whose model can stop early."""

import dataclasses
from typing import Any

from ml_collections import config_dict
import numpy as np

from adavit_jax import cost
from adavit_jax import data
from adavit_jax.exits import confidence
from adavit_jax.models import stages


@dataclasses.dataclass(frozen=True)
class StagedSystem:
  """Everything static that a step needs, for a model with `stages`.

  Attributes:
    config: the run's frozen config.
    model: a module with `num_stages` and `stage`, for example a `RAViT`.
    cost: `StageCost` of everything that the model computes.
    paper_cost: `StageCost` as the tables of the model's paper count it.
    mean: as in `System`.
    std: as in `System`.
  """
  config: config_dict.ConfigDict
  model: Any
  cost: cost.StageCost
  paper_cost: cost.StageCost
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def normalize(self, images):
    """uint8 [B, H, W, C] to the model's float32 input [B, S, S, C]."""
    return data.normalize(images, self.mean, self.std,
                          image_size=self.model.image_size)

  def exit_logits(self, params, images):
    """Logits at every exit, [E, B, K], of normalised images [B, S, S, C]."""
    c = self.config.model
    return stages.exit_logits(self.model, params, images, unroll=c.unroll,
                              remat=c.remat)

  @property
  def rule(self):
    """The `Rule` of the config: how sure an exit is."""
    return confidence.RULES[self.config.exits.rule]

  @property
  def weights(self):
    """Weight of each exit in the loss, [E]."""
    weights = np.asarray(self.config.exits.weights, np.float32)
    return np.broadcast_to(weights, self.model.num_stages)


def create(config, model, mean, std):
  """Makes the `StagedSystem` of a config.

  Args:
    config: see `train.config.default_config`.
    model: from `models.create`, with `num_stages`.
    mean: per-channel mean, in units of 1.
    std: per-channel deviation, likewise.

  Raises:
    ValueError: if `config.exits` or `config.init` does not fit the model.
  """
  if config.init.weights:
    raise ValueError(f'init.weights={config.init.weights!r} is for a plain ViT '
                     f'and {config.model.name!r} has exits; unset it')
  c = config.exits
  if len(c.weights) not in (1, model.num_stages):
    raise ValueError(
        f'exits.weights={tuple(c.weights)} must have one number for each of '
        f'the {model.num_stages} exits of {config.model.name!r}, or one for '
        f'all of them')
  if min(c.weights) < 0 or not any(c.weights):
    raise ValueError(f'exits.weights={tuple(c.weights)} must not be negative, '
                     f'and at least one of them positive')
  if c.rule not in confidence.RULES:
    raise ValueError(
        f'exits.rule={c.rule!r}; known: {list(confidence.RULES)}')
  return StagedSystem(config, model, cost.ravit(model), cost.ravit_paper(model),
                      mean, std)
