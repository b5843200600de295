"""Model, policy networks and cost of a run, made once from its config."""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from ml_collections import config_dict

from adavit_jax import cost
from adavit_jax import models
from adavit_jax import data
from adavit_jax.models.actions import Actions
from adavit_jax.policies import inputs
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.train import config as config_lib
from adavit_jax.train import staged
from adavit_jax.train import tasks


@dataclasses.dataclass(frozen=True)
class System:
  """Everything static that a step needs.

  Attributes:
    config: the run's frozen config.
    model: `ViT`.
    nets: `PolicyNets`.
    cost: `Cost` with the policy networks.
    plain_cost: `Cost` without them.
    mean: per-channel mean that images are normalised with, in units of 1: the
      config's `data.mean`, else the data's.
    std: per-channel deviation, likewise.
  """
  config: config_dict.ConfigDict
  model: models.ViT
  nets: learned.PolicyNets
  cost: cost.Cost
  plain_cost: cost.Cost
  mean: tuple[float, ...]
  std: tuple[float, ...]
  target = None  # regression is for a `StagedSystem`

  def normalize(self, images):
    """uint8 [B, H, W, C] to the model's float32 input [B, S, S, C]."""
    return data.normalize(images, self.mean, self.std,
                          image_size=self.model.image_size)

  def masked(self, params, z1, gates):
    """`modes.masked` with the config's unrolling and rematerialisation."""
    c = self.config.model
    return modes.masked(self.model, params, z1, gates, unroll=c.unroll,
                        remat=c.remat)

  def classify(self, params, z1, gates):
    """`Logits` of z1 [B, N, D] under gates [B, L] or [L], all in one pass."""
    x, _ = self.masked(params, z1, gates)
    return modes.classify(self.model, params, x)

  def features(self, params, z1, stats):
    """`learned.observe` z1; params with the groups 'vit' and 'policy'."""
    return learned.observe(self.nets, self.model, params, z1, stats)

  @property
  def backbone(self):
    """The model itself, as a `StagedSystem` names its ViT."""
    return self.model


def create(config, dataset):
  """Makes the `System` of a config, or its `StagedSystem`, for a data set.

  Args:
    config: see `train.config.default_config`.
    dataset: anything with num_classes, channels, mean, std and target.

  Raises:
    ValueError: if model and data do not fit together, or there is one class.
  """
  if dataset.target is None and dataset.num_classes < 2:
    raise ValueError(f'{config.data.name!r} has {dataset.num_classes} class; '
                     f'there must be at least 2 to tell apart')
  model = models.create(
      config.model.name, **config_lib.model_overrides(config),
      dtype=config.dtype, num_classes=tasks.create(dataset).num_outputs,
      channels=dataset.channels)
  if config.data.image_size != model.image_size:
    raise ValueError(
        f'data.image_size={config.data.image_size} but the model '
        f'{config.model.name!r} takes {model.image_size}; set '
        f'--config.model.image_size={config.data.image_size}, or another '
        f'--config.data.image_size')
  mean, std = (tuple(map(float, config.data[field] or getattr(dataset, field)))
               for field in ('mean', 'std'))
  if {len(mean), len(std)} != {model.channels}:
    raise ValueError(f'data.mean={mean} and data.std={std} must have one value '
                     f'for each of the {model.channels} channels of the images')
  if hasattr(model, 'num_stages'):
    return staged.create(config, model, dataset, mean, std)
  if dataset.target is not None:
    raise ValueError(f'{config.data.name!r} is a regression, which takes a '
                     f"model with exits; set for example --config.model.exits="
                     f"\"((2,'mlp'),(4,'mlp'))\" and --config.phases="
                     f"\"('exits',)\"")
  nets = config_lib.policy_nets(config, model)
  return System(config, model, nets, cost.vit(model, nets), cost.vit(model),
                mean, std)


@struct.dataclass
class State:
  """All that changes during training; a checkpoint holds exactly this.

  Attributes:
    step: steps taken over all phases, [] int32.
    params: {'vit': ..., 'policy': ...}; of a `StagedSystem` see there. Fields
      that a system has no use for are None.
    opt_state: of the current phase.
    ema: averaged parameters of the groups the phase trains; None if off.
    log_price: log μ of the MAC controller, [].
    stats: feature statistics of the policy.
    candidates: `Actions` [C, L], static masks found greedily; the first
      2L + 1 are the chain of all images (`search.candidates`).
    teacher: the ViT's parameters at the end of the dense phase, or None.
    key: PRNG key of the run.
  """
  step: jax.Array
  params: dict[str, Any]
  opt_state: Any
  ema: Any
  log_price: jax.Array
  stats: inputs.Stats
  candidates: Actions
  teacher: Any
  key: jax.Array


def init_state(system, seed):
  """The state before the first phase, with no optimizer yet."""
  key, vit_key, policy_key = jax.random.split(jax.random.key(seed), 3)
  model, nets = system.model, system.nets
  params = models.init_params(model, vit_key)
  # A model with exit heads names its groups itself.
  params = params if 'heads' in params else {'vit': params}
  fields = dict.fromkeys(
      ('opt_state', 'ema', 'log_price', 'stats', 'candidates', 'teacher'))
  if nets is not None:
    params['policy'], fields['stats'] = learned.init_params(
        nets, system.backbone, policy_key)
  if not isinstance(system, staged.StagedSystem):
    shape = (nets.num_candidates, model.num_adaptive)
    fields['candidates'] = Actions(*jnp.ones((2, *shape), jnp.float32))
    fields['log_price'] = jnp.zeros((), jnp.float32)
  return State(step=jnp.zeros((), jnp.int32), params=params, key=key, **fields)


def final_params(state):
  """The parameters to go on with: the averaged ones where there are any."""
  return {**state.params, **(state.ema or {})}
