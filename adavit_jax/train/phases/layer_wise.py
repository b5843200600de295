"""Trains one stage after the other: an exit with its encoders, then frozen.

The steps of the phase are divided into E rounds of equal length; the last round
takes the remainder. Each round has a separate optimizer state and schedule.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.train import training_pass
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def stage_of(system, done):
  """Returns the index of the stage that learns after `done` steps, []."""
  length = system.config.layer_wise.steps // system.num_exits
  return jnp.minimum(done // length, system.num_exits - 1)


def loss(system, params, state, batch, key, done):
  """Returns the loss of one exit; see `Phase.loss`.

  Only the stage that learns is differentiated, and later stages are not run.
  """
  del state

  def learn(index, params):
    outputs, stats = exit_losses.outputs(
        system, params, batch, key, num=index + 1, detach=True)
    value = exit_losses.each(system, outputs[-1:], batch)[0]
    metrics = exit_losses.metrics(
        system, value, outputs[-1:], [value], batch)
    return value, metrics, training_pass.updates(stats)

  stage = stage_of(system, done)
  total, metrics, updates = jax.lax.switch(
      stage, [lambda params, i=i: learn(i, params)
              for i in range(system.num_exits)], params)
  # The exit changes with the step, but names of metrics must not.
  metrics = {k.removesuffix('_0'): v for k, v in metrics.items()}
  return total, ({**metrics, 'exit': stage}, updates)


def only_stage(system, changes, done):
  """Zeroes the updates of all stages except the one that learns.

  Zero gradients are not enough: weight decay would still apply.

  Args:
    system: `System`.
    changes: updates, a tree like {'backbone': ..., 'heads': ...}.
    done: steps of the phase so far.

  Returns:
    The same tree.
  """
  stage = stage_of(system, done)
  owners = plan.owners(system.model)
  heads = {f'exit_{e.index}': i for i, e in enumerate(system.exits) if e.head}

  def of_backbone(path, leaf):
    owner = jnp.asarray(owners.get(path[0].key, 0))
    owner = owner.reshape(-1, *[1] * (leaf.ndim - 1)) if owner.ndim else owner
    return jnp.where(owner == stage, leaf, 0)

  def of_heads(path, leaf):
    return jnp.where(heads[path[0].key] == stage, leaf, 0)

  functions = dict(backbone=of_backbone, heads=of_heads)
  return {group: jax.tree_util.tree_map_with_path(functions[group], tree)
          for group, tree in changes.items()}


def check(system):
  """Raises a ValueError for fewer steps than exits, or if `ema` is set."""
  c, num = system.config.layer_wise, system.num_exits
  if c.steps < num:
    raise ValueError(f'layer_wise.steps={c.steps} must be at least {num}, the '
                     f'number of exits')
  if c.ema:
    raise ValueError(f'layer_wise.ema={c.ema} must be 0: each stage is trained '
                     f'on the frozen stages, not on their average')


PHASE = Phase(
    loss, trains=('backbone', 'heads'), mean=True, from_scratch=True,
    exits=True, check=check, rounds=lambda system: system.num_exits,
    adjust=only_stage, defaults=OPTIMIZER)
