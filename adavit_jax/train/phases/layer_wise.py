"""One exit after the other, each with the encoders before it; then they freeze.

The steps of the phase are divided into E rounds of one length, what is left
over goes to the last. Every round has an optimizer and a schedule of its own.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def stage_of(system, done):
  """Number of the stage that learns after `done` steps of the phase, []."""
  length = system.config.layer_wise.steps // system.num_exits
  return jnp.minimum(done // length, system.num_exits - 1)


def loss(system, params, state, batch, key, done):
  """Loss of one exit; see `Phase.loss`.

  Only the stage that learns is differentiated, and no later one is run.
  """
  del state

  def learn(index, params):
    outputs, stats = exit_losses.outputs(
        system, params, batch, key, num=index + 1, detach=True)
    value = exit_losses.each(system, outputs[-1:], batch)[0]
    metrics = exit_losses.metrics(
        system, value, outputs[-1:], [value], batch)
    return value, metrics, system.updates(stats)

  stage = stage_of(system, done)
  total, metrics, updates = jax.lax.switch(
      stage, [lambda params, i=i: learn(i, params)
              for i in range(system.num_exits)], params)
  # Which exit it is changes with the step, and so would the names.
  metrics = {k.removesuffix('_0'): v for k, v in metrics.items()}
  return total, ({**metrics, 'exit': stage}, updates)


def only_stage(system, changes, done):
  """Leaves the changes of the parameters of one stage, and no others.

  Zero gradients are not enough: weight decay would go on.

  Args:
    system: `System`.
    changes: tree like {'backbone': ..., 'heads': ...}.
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
  """Raises a ValueError for fewer steps than exits, or averages."""
  c, num = system.config.layer_wise, system.num_exits
  if c.steps < num:
    raise ValueError(f'layer_wise.steps={c.steps} must be at least {num}, the '
                     f'number of exits')
  if c.ema:
    raise ValueError(f'layer_wise.ema={c.ema} must be 0: every stage is '
                     f'trained on the ones that are frozen, and not on their '
                     f'average')


PHASE = Phase(
    loss, trains=('backbone', 'heads'), from_scratch=True, exits=True,
    check=check, rounds=lambda system: system.num_exits, adjust=only_stage,
    defaults=OPTIMIZER)
