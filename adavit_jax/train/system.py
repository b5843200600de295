"""Model, policy networks and cost of a run, made once from its config."""

import dataclasses
import functools
from typing import Any, NamedTuple

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
from adavit_jax.models.backbone import Context
from adavit_jax.models.backbone import X
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages
from adavit_jax.train import config as config_lib
from adavit_jax.train import phases
from adavit_jax.train import tasks
from adavit_jax.train.phases import static


class Start(NamedTuple):
  """A batch at the place where the policy decides, in training.

  Attributes:
    x: activations z1.
    ctx: `Context` for the remaining encoders, with the statistics so far.
    early: list of logits [B, K] of the backbone's own exits up to this place.
  """
  x: X
  ctx: Context
  early: list[jax.Array]


class Finish(NamedTuple):
  """A batch at the last exit, in training.

  Attributes:
    logits: `Logits` [B, K].
    early: list of logits [B, K] of the backbone's own earlier exits.
    nested: `Logits` [R, B, K] of the last exit applied to the tokens at the
      place of the policy and after each encoder except the last, or None.
    stats: batch statistics of the backbone; {} if it has none.
  """
  logits: models.Logits
  early: list[jax.Array]
  nested: models.Logits | None
  stats: Any


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
    mean: per-channel mean for normalisation, for pixels in [0, 1]: the config's
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
    return confidence.RULES[self.config.exits.rule]

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

  # For inference; params are groups, folded.

  def fold(self, params):
    """Returns groups for inference, see `models.fold`."""
    return models.fold(self.model, params)

  def frozen(self, params):
    """Returns folded groups without gradient."""
    return self.fold(jax.lax.stop_gradient(params))

  def fixed(self, params, images):
    """Returns z1 of normalised images, see `modes.fixed`."""
    return modes.fixed(self.model, params, images)

  def classify(self, params, z1, images, actions):
    """Returns `Logits` of z1 under gates [B, ...] or [...], mode 'masked'."""
    x = masked.run(self.model, params, z1, images, actions,
                   start=self.model.num_fixed, **self.scan).x
    return modes.classify(self.model, params, x)

  def repeated(self, params, z1, images, actions, num):
    """Returns logits of each image under `num` action vectors.

    The image axis comes first, so that rows stay on the device of their image.

    Args:
      params: groups, folded.
      z1: activations of B images.
      images: [B, S, S, C], normalised.
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

  def greedy(self, params, z1, images, threshold=None):
    """Returns the policy's `Actions` [B, L1], [B, L2].

    Args:
      params: groups, folded, with the policy's.
      z1: activations of B images.
      images: [B, S, S, C], normalised.
      threshold: the policy's threshold; None for the config's.
    """
    return self.decide(params['policy'], self.features(params, z1, images),
                       threshold=threshold)

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

  def tokens(self, x):
    """Returns the tokens [B, N, D] of z1."""
    return self.model.tokens(
        x, plan.tokens_at(self.model, self.model.num_fixed))

  def actions(self, phase):
    """Returns `Actions` [L1], [L2] of every image after a phase.

    None if the policy decides.
    """
    decider = phases.decider(self.config, phase)
    if decider == 'policy':
      return None
    if decider == 'mask':
      return static.at_inference(self)
    return fixed.all_layers(plan.num_layers(self.model))

  def stages(self, phase, mode=None):
    """Returns E functions (params, images, carry) -> (carry, outputs).

    Args:
      phase: the layers are chosen as at the end of this phase.
      mode: see `stages.stages`; 'masked' for training, None for inference.

    Returns:
      As `stages.stages`; images and outputs [B, K] are normalised.
    """
    decider = phases.decider(self.config, phase)
    return stages.stages(
        self.model, decide=self.greedy if decider == 'policy' else None,
        actions=self.actions(phase) if decider == 'mask' else None, mode=mode,
        inference=mode is None, **self.scan)

  def programs(self, phase, mode=None):
    """Returns `stages` from uint8 images to outputs in the target's unit."""
    return [functools.partial(_program, self, stage)
            for stage in self.stages(phase, mode)]

  def stage_cost(self, phase):
    """Returns the `Cost` of `stages(phase)` with all layers."""
    learned_policy = phases.decider(self.config, phase) == 'policy'
    return self.cost if learned_policy else self.plain_cost

  def stage_macs(self, phase, index, carry=None):
    """Returns the MACs of a stage: [], or [B] if a policy decides per image.

    Args:
      phase: as in `stages`.
      index: index of the stage.
      carry: the stage's new carry; only the policy's actions are read from it.
    """
    decider, actions = phases.decider(self.config, phase), None
    if decider == 'mask':
      actions = self.actions(phase)
    elif (decider == 'policy'
          and plan.spans(self.model)[index][1] > self.model.num_fixed):
      actions = Actions(*carry[1])
    return self.stage_cost(phase).stage(index, actions)

  # For training; params are groups, not folded.

  def context(self, params, key=None):
    """Returns the `Context` of training."""
    return Context(True, key, params.get('batch_stats', {}))

  def begin(self, params, images, key=None):
    """Runs the embedding and the fixed encoders in training: `Start`."""
    ctx = self.context(params, key)
    x, stats, _ = modes.embed(self.model, params, images, ctx)
    stop = self.model.num_fixed
    # A scan over few encoders saves no memory, so up to three are unrolled.
    x, ctx, early, _ = self._run(
        params, x, images, ctx._replace(stats=stats), None, 0, stop,
        unroll=min(3, max(stop, 1)))
    return Start(x, ctx, early)

  def finish(self, params, start, images, gates, *, nested=False):
    """Runs the encoders after the policy and the last exit in training.

    Args:
      params: groups.
      start: `Start` of B images.
      images: [B, S, S, C], normalised; may be None unless
        `plan.rereads_images`.
      gates: `Actions` of floats [B, ...] or [...].
      nested: whether to classify after every encoder, see `Finish`.

    Returns:
      `Finish`.
    """
    model, last = self.model, len(self.model.own_exits()) - 1
    read = plan.read_last(model) if nested else None
    x, ctx, early, firsts = self._run(
        params, start.x, images, start.ctx, gates, model.num_fixed,
        plan.num_encoders(model), firsts=read, **self.scan)
    ctx = masked.fold_key(ctx, f'exit_{last}')
    classify = lambda x: model.classify(params['backbone'], x, last, ctx)
    inner = None
    if nested:
      firsts = jnp.concatenate([start.x[None, :, :read], firsts[:-1]])
      inner = jax.vmap(lambda x: classify(x)[0])(firsts)
    logits, changed = classify(x)
    return Finish(logits, start.early + early, inner,
                  masked.merged(ctx.stats, changed))

  def _run(self, params, x, images, ctx, gates, start, stop, **options):
    """Runs the encoders from start to stop, and the early exits between them.

    Returns:
      (activations, `Context`, list of logits [B, K], `firsts` of the last part
      as in `masked.run`).
    """
    model, early, firsts = self.model, [], None
    ends = [(i, e.place) for i, e in enumerate(model.own_exits()[:-1])
            if start < e.place <= stop]
    for i, end in [*ends, (None, stop)]:
      here = None if gates is None else plan.cut(model, gates, start, end)
      x, stats, firsts = masked.run(
          model, params, x, images, here, start=start, stop=end, ctx=ctx,
          **options)
      start, ctx = end, ctx._replace(stats=stats)
      if i is not None:
        logits, changed = model.classify(
            params['backbone'], x, i, masked.fold_key(ctx, f'exit_{i}'))
        ctx = ctx._replace(stats=masked.merged(stats, changed))
        early.append(logits.total)
    return x, ctx, early, firsts

  def updates(self, stats):
    """Returns new batch statistics as the updates of a loss."""
    return {'params': {'batch_stats': stats}} if stats else {}


def _program(system, stage, params, images, carry):
  # Each stage normalises: uint8 pixels take a quarter of the memory of floats.
  carry, y = stage(params, system.normalize(images), carry)
  return carry, system.task.denormalize(y)


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
  if c.rule not in rules and (num > 1 or not regression):
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
