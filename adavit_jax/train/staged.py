"""Model and cost of a run whose model can stop early."""

import dataclasses
import functools
from typing import Any

from absl import logging
from ml_collections import config_dict
import numpy as np

from adavit_jax import cost
from adavit_jax import data
from adavit_jax import exit_cost
from adavit_jax import models
from adavit_jax.exits import confidence
from adavit_jax.models import stages as stages_lib
from adavit_jax.policies import learned
from adavit_jax.runtime import exit_stages
from adavit_jax.train import config as config_lib
from adavit_jax.train import tasks


@dataclasses.dataclass(frozen=True)
class StagedSystem:
  """Everything static that a step needs, for a model with `stages`.

  Parameters come in groups: 'vit' is all of a `RAViT` or the backbone of a
  `MultiExit`, 'heads' the early exits of that, 'policy' and 'stats' those of
  the policy that drops its layers.

  Attributes:
    config: the run's frozen config.
    model: a `RAViT` or `MultiExit`.
    task: `tasks.Classification` or `tasks.Regression`.
    target: `Target` of a regression, or None.
    nets: `PolicyNets`, or None where no policy drops layers.
    cost: `StageCost` of everything that the model computes, no layer dropped.
    dense: MACs of the model without exits that the cost is compared with.
    paper_cost: `StageCost` as the tables of RAViT's paper count it, or None.
    mean: as in `System`.
    std: as in `System`.
  """
  config: config_dict.ConfigDict
  model: Any
  task: tasks.Classification | tasks.Regression
  target: data.Target | None
  nets: learned.PolicyNets | None
  cost: cost.StageCost
  dense: int
  paper_cost: cost.StageCost | None
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  def num_exits(self):
    """E."""
    return self.model.num_stages

  @property
  def head_macs(self):
    """MACs of each early exit of a `MultiExit`, a list."""
    return [exit_cost.head_macs(name, self.model.vit, self.task.num_outputs)
            for _, name in self.model.exits]

  @property
  def backbone(self):
    """The `ViT` of the group 'vit', or the `RAViT`."""
    return getattr(self.model, 'vit', self.model)

  @property
  def rule(self):
    """The `Rule` of the config: how sure an exit is."""
    return confidence.RULES[self.config.exits.rule]

  @property
  def weights(self):
    """Weight of each exit in end-to-end training, [E].

    One number in the config is for all of them, but for the last exit of a
    multi-exit ViT, which counts double.
    """
    given = self.config.exits.weights
    weights = np.full(self.num_exits, given, np.float32)
    if len(given) == 1 and isinstance(self.model, models.MultiExit):
      weights[-1] *= 2
    return weights

  def normalize(self, images):
    """uint8 [B, H, W, C] to the model's float32 input [B, S, S, C]."""
    return data.normalize(images, self.mean, self.std,
                          image_size=self.model.image_size)

  def all_params(self, state, params=None):
    """All groups of a state, those in `params` from there."""
    stats = {} if state.stats is None else {'stats': state.stats}
    return {**state.params, **(params or {}), **stats}

  def stages(self, mode='masked'):
    """E functions (params, normalised images, carry) -> (carry, outputs).

    Args:
      mode: how layers run that a policy may drop, see `exit_stages.stages`;
        None is for inference.

    Returns:
      As `models.stages.stages`; params with all groups, outputs [B, K]
      normalised.
    """
    scan = dict(unroll=self.config.model.unroll, remat=self.config.model.remat)
    if self.nets is not None:
      return exit_stages.stages(self.model, self._decide, mode, **scan)
    found = stages_lib.stages(self.model, inference=mode is None, **scan)
    if isinstance(self.model, models.MultiExit):
      keys = ('vit', 'heads')
      own = lambda params: {key: params[key] for key in keys}
    else:
      own = lambda params: params['vit']
    return [functools.partial(_of_own, own, stage) for stage in found]

  def programs(self, mode=None):
    """`stages` from uint8 images to outputs in the target's unit."""
    return [functools.partial(_program, self, stage)
            for stage in self.stages(mode)]

  def outputs(self, params, images):
    """Normalised outputs [B, K] of every exit, a list; see `stages`."""
    carry, found = None, []
    for stage in self.stages():
      carry, y = stage(params, images, carry)
      found.append(y)
    return found

  def spent(self, index, carry):
    """MACs of a stage, given the carry that leaves it: [] or [B]."""
    if self.nets is None:
      return float(self.cost.stages[index])
    dropped = exit_stages.dropped(self.model, index, carry[1])
    vit = cost.vit(self.model.vit)
    return (float(self.cost.stages[index]) - dropped.msa * float(vit.msa)
            - dropped.mlp * float(vit.mlp))

  def _decide(self, params, z1):
    features = learned.observe(
        self.nets, self.backbone, params, z1, params['stats'])
    return learned.greedy(self.nets, params['policy'], features,
                          threshold=self.config.nets.threshold)


def _of_own(own, stage, params, images, carry):
  return stage(own(params), images, carry)


def _program(system, stage, params, images, carry):
  # Normalised in every stage anew: pixels are a quarter of what floats take.
  carry, y = stage(params, system.normalize(images), carry)
  return carry, system.task.denormalize(y)


def create(config, model, dataset, mean, std):
  """Makes the `StagedSystem` of a config.

  Args:
    config: see `train.config.default_config`.
    model: from `models.create`, with `num_stages`.
    dataset: anything with num_classes and target.
    mean: per-channel mean, in units of 1.
    std: per-channel deviation, likewise.

  Raises:
    ValueError: if `config.exits` or `config.init` does not fit the model.
  """
  multi = isinstance(model, models.MultiExit)
  c = config.exits
  if config.init.weights and not multi:
    raise ValueError(f'init.weights={config.init.weights!r} is for a ViT and '
                     f'{config.model.name!r} has branches; unset it')
  regression = dataset.target is not None
  if c.policy:
    _check_policy(config, multi, regression)
  _check_weights(c.weights, model, config.model.name)
  rules = confidence.rules_for(regression)
  if c.rule not in rules:
    raise ValueError(
        f'exits.rule={c.rule!r}; known for '
        f"{'regression' if regression else 'classification'}: {list(rules)}")
  if regression:
    data.check_regression(config.data)
    if model.num_stages == 2:
      logging.warning(
          'no image can leave early: the rule %r compares two exits in a row, '
          'and model.exits=%s has one before the last; add another', c.rule,
          model.exits)
  nets = config_lib.policy_nets(config, model.vit) if c.policy else None
  if nets is not None:
    exit_stages.stages(model, None)  # only for its errors
  if multi:
    costs = exit_cost.multi_exit(model, nets), cost.vit(model.vit).dense, None
  else:
    costs = cost.ravit(model), cost.ravit(model).dense, cost.ravit_paper(model)
  return StagedSystem(config, model, tasks.create(dataset), dataset.target,
                      nets, *costs, mean, std)


def _check_policy(config, multi, regression):
  if not multi:
    raise ValueError(f'exits.policy=True drops layers of a ViT with '
                     f'model.exits, and {config.model.name!r} has branches')
  if regression:
    raise ValueError(f'exits.policy=True is for classification, and the labels '
                     f'of {config.data.name!r} are numbers')
  if tuple(config.phases) != ('classifier_wise',):
    raise ValueError(f"exits.policy=True takes phases=('classifier_wise',), "
                     f'not {tuple(config.phases)}: the policy would no longer '
                     f'fit a ViT that changes')
  if not config.init.workdir:
    raise ValueError('exits.policy=True needs --config.init.workdir=DIR, a run '
                     'that trained a policy')


def _check_weights(weights, model, name):
  if len(weights) not in (1, model.num_stages):
    raise ValueError(
        f'exits.weights={tuple(weights)} must have one number for each of the '
        f'{model.num_stages} exits of {name!r}, or one for all of them')
  if not all(0 <= w < np.inf for w in weights) or not any(weights):
    raise ValueError(f'exits.weights={tuple(weights)} must be finite, not '
                     f'negative, and at least one of them positive')
