"""The parameters of a model as a dict of groups.

The groups are 'backbone', 'heads' for added exits and 'batch_stats' for batch
statistics, if there are any; 'batch_stats' is None once the parameters are
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
  """Initializes the float32 parameters of `model`; does not read its weights.

  Args:
    model: a `Backbone`.
    key: PRNG key.

  Returns:
    dict of parameter groups.

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
    raise ValueError(f'key={key!r} is not a single PRNG key; give '
                     f'jax.random.key(0), or one key of a split')


# Jitted because shapes of parameters are evaluated often: traced only once.
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
  """Computes the logits at an exit.

  Args:
    model: a `Backbone`.
    params: parameter groups.
    x: activations at the place of the exit.
    e: `plan.Exit`.
    ctx: `Context`.

  Returns:
    (logits [B, K] float32, updated batch statistics).
  """
  if not e.head:
    logits, stats = model.classify(params['backbone'], x, e.index, ctx)
    return logits.total, stats
  return head_logits(model, params, _head_input(model, x, e), e), {}


def exit_reading(model, params, x, e):
  """Returns what does not depend on the added heads at an exit.

  Args:
    model: a `Backbone`.
    params: parameter groups, folded; the heads are not read.
    x: activations at the place of the exit.
    e: `plan.Exit`.

  Returns:
    (the tokens [B, N, D] that an added head reads, or the logits [B, K] of an
    own exit, updated batch statistics).
  """
  if e.head:
    return _head_input(model, x, e), {}
  return exit_logits(model, params, x, e)


def _head_input(model, x, e):
  tokens = model.tokens(x, plan.tokens_at(model, e.place))
  return tokens[:, :head(model, e.index).num_read]


def head_logits(model, params, tokens, e):
  """Computes the logits of an added head.

  Args:
    model: a `Backbone`.
    params: parameter groups; only the heads are read.
    tokens: [B, N, D], from `exit_reading`.
    e: `plan.Exit` with a head.

  Returns:
    [B, K] float32.
  """
  return head(model, e.index).apply(
      {'params': params['heads'][f'exit_{e.index}']}, tokens)


def fold(model, params):
  """Folds the batch statistics into the backbone for inference.

  Args:
    model: a `Backbone`.
    params: parameter groups; folded ones are returned unchanged.

  Returns:
    Parameter groups with 'batch_stats' None, which marks them as folded.
  """
  stats = params.get('batch_stats', {})
  if stats is None:
    return params
  return {**params, 'backbone': model.fold(params['backbone'], stats),
          'batch_stats': None}
