"""Checks that a backbone implements the interface, by tracing only."""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models import stack_rows
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import Context
from adavit_jax.models.backbone import Delta
from adavit_jax.models.backbone import EVAL
from adavit_jax.models.backbone import Logits

_BATCH = 2


def check_backbone(model):
  """Traces every part of a backbone's plan and checks its shapes.

  Use it in the tests of a new backbone. It checks neither the results of
  branches nor whether a branch marked `local` is local: compare the execution
  modes under per-image actions for that.

  Args:
    model: a `Backbone`.

  Raises:
    ValueError: if a part is inconsistent; the message names it.
  """
  plan.check(model)
  params, stats = _trace('init_variables', model.init_variables,
                         jax.random.key(0))
  _check_part(model, params, Context(True, jax.random.key(0), stats),
              'in training')
  folded = _trace('fold', model.fold, params, stats)
  _check_part(model, folded, EVAL, 'folded')


def _check_part(model, params, ctx, when):
  images = jax.ShapeDtypeStruct(
      (_BATCH, model.image_size, model.image_size, model.channels),
      jnp.float32)
  x = _pair(f'embed, {when}', model.embed, params, images, ctx)
  _check_tokens(f'embed, {when}', model, x, plan.tokens_at(model, 0))
  for i, item in enumerate(model.plan()):
    where = f'plan()[{i}], {when}'
    if isinstance(item, Bridge):
      unknown = set(item.params) - set(params)
      if unknown:
        raise ValueError(f'{where}: params={item.params} contains unknown '
                         f'groups; known: {sorted(params)}')
      known = set(x) if isinstance(x, dict) else set()
      if not set(item.keys) <= known:
        raise ValueError(f'{where}: keys={item.keys} must be keys of a dict x, '
                         f'which has {sorted(known) or "none"}')
      # A stage before the bridge carries these alone.
      carried = {key: x[key] for key in item.keys} if item.keys else x
      x = _pair(where, item.run, params, carried, images, ctx)
      continue
    x = _check_stack(where, item, params, x, ctx)
    _check_tokens(where, model, x, item.at)
  last = len(model.own_exits()) - 1
  logits = _pair(f'classify, {when}', model.classify, params, x, last, ctx)
  if not isinstance(logits, Logits) or logits.cls.shape != (
      _BATCH, model.num_classes):
    raise ValueError(f'classify, {when}: returns {logits}, not `Logits` of '
                     f'[B, {model.num_classes}]')


def _check_tokens(where, model, x, at):
  """Checks the shape of the tokens at a place."""
  tokens = _trace(f'tokens after {where}', model.tokens, x, at)
  if tokens.shape != (_BATCH, at.num, at.width):
    raise ValueError(f'{where}: the tokens are {tokens.shape}, but `at` says '
                     f'[B, {at.num}, {at.width}]')


def _check_stack(where, stack, params, x, ctx):
  """Checks the branches of a stack; returns the activations after it."""
  if stack.group not in params:
    raise ValueError(f'{where}: unknown parameter group {stack.group!r}; '
                     f'known: {sorted(params)}')
  rows = {leaf.shape[:1] for leaf in jax.tree.leaves(params[stack.group])}
  stop = stack.start + stack.length
  if len(rows) > 1 or min(rows)[0] < stop:
    raise ValueError(f'{where}: encoders {stack.start} to {stop} exceed the '
                     f'leading axes of {stack.group!r}, {sorted(rows)}')
  row = lambda tree: jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
  if ctx.stats is not None:
    ctx = ctx._replace(stats=row(ctx.stats.get(stack.group, {})))
  known = set(x) if isinstance(x, dict) else set()
  if (stack.each or stack.out) and (
      not known or not set(stack.each) <= known):
    raise ValueError(f'{where}: each={stack.each} and out='
                     f'{tuple(stack.out)} are keys of a dict x, which has '
                     f'{sorted(known) or "none"}')
  for key in stack.each:
    if x[key].ndim < 2 or x[key].shape[1] < stop:
      raise ValueError(f'{where}: each={stack.each} needs [B, rows, ...] with '
                       f'rows for encoders up to {stop}, but x[{key!r}] is '
                       f'{x[key].shape}')
  before, (x, each) = x, _trace(
      where, lambda x: stack_rows.split(stack, x), x)
  x = _trace(where, lambda x, rows: stack_rows.enter(stack, x, rows), x,
             row(each))
  for i, branch in enumerate(stack.branches):
    here = f'{where}, branch {i} ({branch.kind!r})'
    delta = _trace(here, branch.run, row(params[stack.group]), x, None, ctx)
    if not isinstance(delta, Delta):
      raise ValueError(f'{here}: returns a {type(delta).__name__}, not `Delta`')
    if branch.replaces:
      x = delta.x
      continue
    have = x if isinstance(x, dict) else {'': x}
    for key, y in (delta.x if isinstance(x, dict) else {'': delta.x}).items():
      if key not in have or (y.shape, y.dtype) != (
          have[key].shape, have[key].dtype):
        raise ValueError(f'{here}: adds {y} to {have.get(key)}; shape and '
                         f'dtype must be equal')
  def join(before, x):
    x, outputs = stack_rows.leave(stack, x)
    return stack_rows.join(stack, before, x, jax.tree.map(
        lambda y: jnp.stack([y] * stack.length), outputs))
  return _trace(where, join, before, x)


def _pair(where, function, *args):
  """Traces a function that returns (result, updated stats); returns result."""
  result = _trace(where, function, *args)
  if (not isinstance(result, tuple) or len(result) != 2
      or not isinstance(result[1], dict)):
    raise ValueError(f'{where}: returns {type(result).__name__}, not (result, '
                     f'dict of updated statistics)')
  return result[0]


def _trace(where, function, *args):
  arrays, tree = jax.tree.flatten(args)
  dynamic = [i for i, a in enumerate(arrays) if hasattr(a, 'dtype')]
  def run(*values):
    every = list(arrays)
    for i, value in zip(dynamic, values):
      every[i] = value
    return function(*jax.tree.unflatten(tree, every))
  try:
    return jax.eval_shape(run, *(arrays[i] for i in dynamic))
  except Exception as error:
    raise ValueError(f'{where}: {type(error).__name__}: {error}') from error
