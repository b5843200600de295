"""The parameters of a model: a dict of groups, the same everywhere.

'backbone' holds those of the backbone, 'heads' the added exits, 'batch_stats'
the batch statistics where there are any; it is None once the parameters are
folded for inference. Training adds 'policy' and 'policy_stats'.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import backbone
from adavit_jax.models import exit_heads
from adavit_jax.models import plan


def init_params(model, key):
  """Initialises the float32 parameters of `model`; reads no weights.

  Args:
    model: a `Backbone`.
    key: PRNG key.

  Returns:
    dict of groups.

  Raises:
    ValueError: if `key` is not a single PRNG key.
  """
  check_key(key)
  return _init(model, key)


def check_key(key):
  """Raises a ValueError unless `key` is a single PRNG key."""
  dtype = getattr(key, 'dtype', np.dtype(object))
  typed = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
  if not (typed or dtype == np.uint32) or np.shape(key) != (
      () if typed else (2,)):
    raise ValueError(f'key={key!r} is not one PRNG key; give '
                     f'jax.random.key(0), or one of those of a split')


# Jitted once for all calls: a model is asked for its parameters' shapes often.
@functools.partial(jax.jit, static_argnums=0)
def _init(model, key):
  backbone_key, head_key = jax.random.split(key)
  params, stats = model.init_variables(backbone_key)
  groups = {'backbone': params}
  if stats:
    groups['batch_stats'] = stats
  if model.exits:
    groups['heads'] = {
        f'exit_{i}': _init_head(model, i, jax.random.fold_in(head_key, i))
        for i in range(len(model.exits))}
  return groups


def head(model, index):
  """The `ExitHead` of an added exit."""
  place, name = model.exits[index]
  return exit_heads.create(name, plan.tokens_at(model, place),
                           model.num_classes, dtype=model.dtype)


def _init_head(model, index, key):
  module = head(model, index)
  return module.init(
      key, jnp.zeros((1, module.at.num, module.at.width)))['params']


def exit_logits(model, params, x, e, ctx=backbone.EVAL):
  """The answer at an exit.

  Args:
    model: a `Backbone`.
    params: groups.
    x: activations at the place of the exit.
    e: `plan.Exit`.
    ctx: `Context`.

  Returns:
    (logits [B, K] float32, changed batch statistics).
  """
  if not e.head:
    logits, stats = model.classify(params['backbone'], x, e.index, ctx)
    return logits.total, stats
  tokens = model.tokens(x, plan.tokens_at(model, e.place))
  return head(model, e.index).apply(
      {'params': params['heads'][f'exit_{e.index}']}, tokens), {}


def fold(model, params):
  """Groups for inference: batch statistics are folded into the backbone.

  Args:
    model: a `Backbone`.
    params: groups.

  Returns:
    Groups with 'batch_stats' None, which marks them: groups that are folded
    come back as they are.
  """
  stats = params.get('batch_stats', {})
  if stats is None:
    return params
  return {**params, 'backbone': model.fold(params['backbone'], stats),
          'batch_stats': None}
