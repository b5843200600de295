"""One exit after the other, each with the encoders before it; then they freeze.

The steps of the phase are divided into E rounds of one length, what is left
over goes to the last. Every round has an optimizer and a schedule of its own.
"""

import jax
import jax.numpy as jnp

from adavit_jax.train.phases import exit_losses

TRAINS = ('vit', 'heads')


def rounds(system):
  """E, the number of rounds."""
  return system.num_exits


def stage_of(system, done):
  """Number of the stage that learns after `done` steps of the phase, []."""
  num = rounds(system)
  length = system.config.layer_wise.steps // num
  return jnp.minimum(done // length, num - 1)


def loss(system, params, state, batch, key, progress):
  """Loss of one exit; arguments and result as in `exits.loss`.

  Only the stage that learns is differentiated, and no later one is run.
  """
  del key
  done = jnp.round(progress * system.config.layer_wise.steps).astype(int)

  def learn(index, trained):
    every = system.all_params(state, trained)
    carry, outputs = None, []
    for stage in system.stages()[:index + 1]:
      carry = jax.lax.stop_gradient(carry)
      carry, y = stage(every, batch.images, carry)
      outputs.append(y)
    value = exit_losses.each(system, outputs[-1:], batch)[0]
    found = exit_losses.metrics(system, value, outputs[-1:], [value], batch)
    return value, found

  stage = stage_of(system, done)
  total, metrics = jax.lax.switch(
      stage, [lambda trained, i=i: learn(i, trained)
              for i in range(system.num_exits)], params)
  # Which exit it is changes with the step, and so would the names.
  return total, ({**{k.removesuffix('_0'): v for k, v in metrics.items()},
                  'exit': stage}, {})


def only(model, changes, stage):
  """Leaves the changes of one stage's parameters, and no others.

  Zero gradients are not enough: weight decay would go on.

  Args:
    model: `MultiExit`.
    changes: tree like {'vit': ..., 'heads': ...}.
    stage: [].

  Returns:
    The same tree.
  """
  vit = model.vit
  ends = jnp.array([model.span(i)[1] for i in range(model.num_stages)])
  last = model.num_stages - 1

  def of_vit(path, leaf):
    group = path[0].key
    if group in ('fixed', 'adaptive'):
      first = vit.num_fixed if group == 'adaptive' else 0
      owner = jnp.searchsorted(
          ends, first + jnp.arange(leaf.shape[0]), side='right')
      owner = owner.reshape(-1, *[1] * (leaf.ndim - 1))
    else:
      owner = last if group in ('norm', 'head', 'head_dist') else 0
    return jnp.where(owner == stage, leaf, 0)

  def of_heads(path, leaf):
    return jnp.where(int(path[0].key.removeprefix('exit_')) == stage, leaf, 0)

  mapped = jax.tree_util.tree_map_with_path
  return dict(vit=mapped(of_vit, changes['vit']),
              heads=mapped(of_heads, changes['heads']))
