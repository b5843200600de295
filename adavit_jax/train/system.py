"""Model, policy networks and cost of a run, made once from its config.

`after_phase` says how the model runs after a phase, `training_pass` how it runs
in training.
"""

import dataclasses
import functools

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from adavit_jax import cost as cost_lib
from adavit_jax import data
from adavit_jax import models
from adavit_jax.exits import confidence
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import value as value_lib
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.train import after_phase
from adavit_jax.train import config as config_lib
from adavit_jax.train import sharded
from adavit_jax.train import tasks


@dataclasses.dataclass(frozen=True)
class System:
  """Everything static that a training step needs.

  Attributes:
    config: the run's frozen config.
    model: a `Backbone`.
    task: `tasks.Classification` or `tasks.Regression`.
    target: `Target` of a regression, or None.
    nets: `PolicyNets`, or None if no policy is trained or used.
    cost: `Cost` with the policy networks.
    plain_cost: `Cost` without them.
    mean: per-channel mean for normalization, for pixels in [0, 1]: the config's
      `data.mean`, else the data's.
    std: per-channel standard deviation, likewise.
  """
  config: config_dict.ConfigDict
  model: models.Backbone
  task: tasks.Classification | tasks.Regression
  target: data.Target | None
  nets: learned.PolicyNets | None
  cost: cost_lib.Cost
  plain_cost: cost_lib.Cost
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  def scan(self):
    """Options of `masked.run` in training: unroll and remat."""
    c = self.config.model
    return dict(unroll=c.unroll, remat=c.remat)

  @property
  def exits(self):
    """The exits of the model, a list of `plan.Exit`."""
    return plan.exits(self.model)

  @property
  def num_exits(self):
    """E, the number of exits."""
    return len(self.exits)

  @property
  def staged(self):
    """Whether all exits are evaluated; for regression even a single one is."""
    return self.num_exits > 1 or self.target is not None

  @property
  def rule(self):
    """The `Rule` of the config, which computes the confidence of an exit."""
    # A regression with a single exit may have any, and uses none.
    alone = self.target and self.num_exits == 1
    return confidence.RULES['agreement' if alone else self.config.exits.rule]

  @property
  def weights(self):
    """Weight of each exit in end-to-end training, [E].

    A single number in the config applies to all exits; in a model with added
    exits, the last exit then counts double.
    """
    weights = np.full(self.num_exits, self.config.exits.weights, np.float32)
    if len(self.config.exits.weights) == 1 and self.model.exits:
      weights[-1] *= 2
    return weights

  @functools.cached_property
  def two_heads(self):
    """Whether the last exit has a distillation head."""
    c = self.model
    images = jnp.zeros((1, c.image_size, c.image_size, c.channels))
    def run(key):
      return modes.forward(c, models.init_params(c, key), images)
    return jax.eval_shape(run, jax.random.key(0)).dist is not None

  def normalize(self, images):
    """Converts uint8 [B, H, W, C] to float32 [B, S, S, C], the model's size."""
    return data.normalize(images, self.mean, self.std,
                          image_size=self.model.image_size)

  def fold(self, params):
    """Returns groups for inference, whole, see `models.fold`."""
    return models.fold(self.model, sharded.whole(params))

  def frozen(self, params):
    """Returns folded groups without gradient."""
    return self.fold(jax.lax.stop_gradient(params))

  def before_policy(self, params, images):
    """Returns z1 of normalized images, see `modes.before_policy`."""
    return modes.before_policy(self.model, params, images)

  def classify(self, params, z1, images, actions):
    """Returns `Logits` of z1 under gates [B, ...] or [...], mode 'masked'.

    params are groups, folded.
    """
    x = masked.run(self.model, params, z1, images, actions,
                   start=self.model.num_fixed, **self.scan).x
    return modes.classify(self.model, params, x)

  def repeated(self, params, z1, images, actions, num):
    """Returns logits of each image under `num` action vectors.

    The image axis comes first, so that rows stay on the device of their image.

    Args:
      params: groups, folded.
      z1: activations of B images.
      images: [B, S, S, C], normalized.
      actions: `Actions` [B num, L1], [B num, L2]; those of one image are
        adjacent.
      num: action vectors per image.

    Returns:
      [B, num, K].
    """
    more = lambda x: jnp.repeat(x, num, axis=0)
    images = more(images) if plan.rereads_images(self.model) else None
    logits = self.classify(
        params, jax.tree.map(more, z1), images, actions).total
    return logits.reshape(-1, num, logits.shape[-1])

  def features(self, params, z1, images):
    """Returns the policy's features of z1, see `learned.observe`.

    params must include the policy's groups.
    """
    return learned.observe(self.nets, self.model, params, z1, images)

  def greedy(self, params, z1, images, knob=None):
    """Returns the policy's `Actions` [B, L1], [B, L2].

    Args:
      params: groups, folded, with the policy's.
      z1: activations of B images.
      images: [B, S, S, C], normalized.
      knob: the threshold of the policy networks, or the price of a value
        policy; None for the default: the config's threshold, or the price of
        the fit.
    """
    knob = self.knob(params) if knob is None else knob
    features = self.features(params, z1, images)
    if self.nets.decide == 'value':
      return self.by_value(params['value'], features, knob)
    return self.decide(params['policy'], features, threshold=knob)

  def knob(self, params):
    """Returns the default `knob` of `greedy`."""
    if self.nets.decide == 'value':
      return params['value'].price
    return self.config.nets.threshold

  def by_value(self, value, features, price):
    """Returns the `Actions` [B, L1], [B, L2] of a `Value` policy.

    Args:
      value: `Value`.
      features: `observation.Features` of B images.
      price: the price of MACs, [].
    """
    chosen = value_lib.best(value_lib.predict(value, features.fixed),
                            self.cost.ratio(value.masks), price)
    return Actions(*(mask[chosen] for mask in value.masks))

  def decide(self, policy, features, *, threshold=None, free=None):
    """Returns the policy's `Actions` for features, see `learned.greedy`.

    Training counts MACs with it too, so that the budget is met at the threshold
    used at inference.

    Args:
      policy: parameters of the policy networks.
      features: `observation.Features` of B images.
      threshold: the policy's threshold; None for the config's.
      free: see `learned.greedy`.

    Returns:
      `Actions` [B, L1], [B, L2].
    """
    if threshold is None:
      threshold = self.config.nets.threshold
    return learned.greedy(
        self.nets, policy, features, threshold=threshold, free=free)

  def deciding(self, decide):
    """Returns the system with another choice of layers, see `PolicyNets`."""
    nets = self.nets.clone(decide=decide)
    return dataclasses.replace(
        self, nets=nets, cost=cost_lib.of(self.model, nets))

  def tokens(self, x):
    """Returns the tokens [B, N, D] of z1."""
    return self.model.tokens(
        x, plan.tokens_at(self.model, self.model.num_fixed))

  def after(self, phase):
    """Returns how the model runs after a phase: `AfterPhase`."""
    return after_phase.AfterPhase(self, phase)


def create(config, dataset):
  """Makes the `System` of a config for a data set.

  Args:
    config: see `train.config.default_config`.
    dataset: object with num_classes, channels, mean, std and target.

  Raises:
    ValueError: if the model does not fit the data, the data has fewer than two
      classes, or `config.exits` does not fit the model or the data.
  """
  regression = dataset.target is not None
  if not regression and dataset.num_classes < 2:
    raise ValueError(f'{config.data.name!r} has {dataset.num_classes} class; '
                     f'classification needs at least 2')
  task = tasks.create(dataset)
  config_lib.import_module(config.model.module)
  model = models.create(
      config.model.name, **config_lib.model_overrides(config),
      dtype=config.dtype, num_classes=task.num_outputs,
      channels=dataset.channels)
  if config.data.image_size != model.image_size:
    raise ValueError(
        f'data.image_size={config.data.image_size} does not fit the model '
        f'{config.model.name!r}, which takes {model.image_size}; set '
        f'--config.model.image_size={config.data.image_size}, or '
        f'--config.data.image_size={model.image_size}')
  mean, std = (tuple(map(float, config.data[field] or getattr(dataset, field)))
               for field in ('mean', 'std'))
  if {len(mean), len(std)} != {model.channels}:
    raise ValueError(f'data.mean={mean} and data.std={std} must have one value '
                     f'for each of the {model.channels} image channels')
  _check_exits(config, model, regression)
  nets = None
  if config_lib.uses_policy(config):
    nets = config_lib.policy_nets(config, model)
  return System(config, model, task, dataset.target, nets,
                cost_lib.of(model, nets), cost_lib.of(model), mean, std)


def _check_exits(config, model, regression):
  c, num = config.exits, len(plan.exits(model))
  if len(c.weights) not in (1, num):
    raise ValueError(
        f'exits.weights={tuple(c.weights)} must have one number for each of '
        f'the {num} exits of {config.model.name!r}, or one number for all')
  if not all(0 <= w < np.inf for w in c.weights) or not any(c.weights):
    raise ValueError(f'exits.weights={tuple(c.weights)} must be finite and not '
                     f'negative, and at least one must be positive')
  rules = confidence.rules_for(regression)
  if c.rule not in (rules if num > 1 or not regression else confidence.RULES):
    kind = 'regression' if regression else 'classification'
    raise ValueError(f'exits.rule={c.rule!r}; known for {kind}: {list(rules)}')
  if regression:
    if config_lib.uses_policy(config):
      raise ValueError(f'a policy needs classes, but the labels of '
                       f'{config.data.name!r} are numbers; set '
                       f'exits.policy=False and phases without a policy')
    data.check_regression(config.data)
    if num == 2:
      logging.warning(
          'no image can leave early: the rule %r compares consecutive exits, '
          'but model.exits=%s has only one before the last; add another',
          c.rule, model.exits)
