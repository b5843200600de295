"""The mode `masked`: computes every branch and multiplies it by its gate.

It serves training, and as the reference for the other modes. Without gates it
is the dense model.
"""

import functools
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models import stack_rows
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import EVAL
from adavit_jax.models.backbone import X
from adavit_jax.runtime import branches


class Result(NamedTuple):
  """Results of running a part of a plan.

  Attributes:
    x: activations at its end.
    stats: batch statistics of the whole backbone; None at inference.
    firsts: the first `firsts` tokens after each encoder of the last stack,
      [R, B, firsts, D], or None.
  """
  x: X
  stats: Any
  firsts: Any


def run(model, params, x, images=None, gates=None, *, start=0, stop=None,
        ctx=EVAL, read=None, unroll=1, remat=False, inference=False,
        firsts=None):
  """Runs the encoders between two places; every branch is computed.

  Args:
    model: a `Backbone`.
    params: groups.
    x: activations at `start`.
    images: [B, S, S, C], normalized; for bridges that read the images again.
    gates: `Actions` [B, ...] or [...] that scale the branches that may be
      dropped: 0/1 for actions, any float for stochastic depth. None runs all.
    start: place to begin at.
    stop: place to end at; None for the end of the plan.
    ctx: `Context`; in training with `stats` of the whole backbone.
    read: how many of the first tokens the caller reads; None for all. Without
      gates the last encoder computes only these.
    unroll: encoders unrolled into one step of a scan.
    remat: recompute the encoders in the backward pass.
    inference: index the weights inside the scan: saves a copy, slows the
      backward pass.
    firsts: how many of the first tokens to return after each encoder.

  Returns:
    `Result`.
  """
  stop = plan.num_encoders(model) if stop is None else stop
  parts, stats = plan.segment(model, start, stop), ctx.stats
  seen = None
  for i, part in enumerate(parts):
    here = fold_key(ctx, f'{start}.{i}')._replace(stats=stats)
    if isinstance(part, Bridge):
      x, changed = part.run(params['backbone'], x, images, here)
      stats = merged(stats, changed)
      continue
    stack_gates = None
    if gates is not None:
      stack_gates, gates = branches.split(part, gates)
    x, rows, seen = _stack(
        part, params['backbone'][part.group], x, stack_gates, here,
        read=branches.read_behind(parts, i, read) if gates is None else None,
        unroll=unroll, remat=remat, inference=inference, firsts=firsts)
    if rows is not None:
      whole = jax.tree.map(
          lambda old, new, part=part: jax.lax.dynamic_update_slice_in_dim(
              old, new, part.start, 0), stats[part.group], rows)
      stats = {**stats, part.group: whole}
  return Result(x, stats, seen)


def merged(stats, changed):
  """Returns batch statistics with some groups updated; None at inference."""
  return {**stats, **changed} if stats is not None else None


def _stack(stack, params, x, gates, ctx, *, read, unroll, remat, inference,
           firsts):
  """Runs one stack: (x, new batch statistics of its encoders, firsts)."""
  encoder = _encoder(stack, ctx, firsts)
  rows = jnp.arange(stack.start, stack.start + stack.length)
  stats = None if ctx.stats is None else ctx.stats.get(stack.group)
  before = x
  x, each = stack_rows.split(stack, x)
  layers = (*_layers(stack, x, rows, stats, gates, ctx.key), each)
  take = lambda i: jax.tree.map(lambda leaf: leaf[i], params)
  one = lambda i: jax.tree.map(lambda leaf: leaf[i], layers)
  end = stack.length - (read is not None)
  outputs, per_encoder = (None, None), {}
  if end and inference:
    step = lambda x, layer: encoder(
        x, stack_rows.row(params, layer[0]), *layer[1])
    x, (outputs, per_encoder) = stack_rows.scan(
        step, x, (rows[:end], one(slice(0, end))), unroll=unroll)
  elif end:
    step = lambda x, layer: encoder(x, *layer)
    step = jax.checkpoint(step) if remat else step
    x, (outputs, per_encoder) = stack_rows.scan(
        step, x, (take(slice(stack.start, stack.start + end)),
                  *one(slice(0, end))), unroll=unroll)
  if read is not None:
    p = take(stack.start + end)
    kept = [np.ones(1, bool)] * len(stack.branches)
    for branch, later in zip(
        stack.branches, branches.read_later(stack, kept, read)):
      this = read if branch.unread and not later.any() else None
      y = branches.delta(branch, p, x, this)
      x = branches.after(branch, branches.first(x, this), y)
    x = branches.first(x, read)
  return stack_rows.join(stack, before, x, per_encoder), *outputs


def _layers(stack, x, rows, stats, gates, key):
  """Returns each encoder's inputs in a stack: (stats, key, gates) [R, ...]."""
  if stats is not None:
    stats = jax.tree.map(
        lambda leaf: leaf[stack.start:stack.start + stack.length], stats)
  if key is not None:
    key = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  if gates is not None:
    batch = jax.tree.leaves(x)[0].shape[0]
    gates = tuple(
        None if a is None else jnp.broadcast_to(a, (batch, a.shape[-1])).T
        for a in branches.per_branch(stack, gates, None))
  return stats, key, gates


def _encoder(stack, ctx, firsts):
  """Returns the function of one encoder.

  It maps (x, params, stats, key, gates, each) to (x, ((new stats, firsts),
  outputs)); see `stack_rows` for each and outputs.
  """
  def encoder(x, params, stats, key, gates, each):
    x, new = stack_rows.enter(stack, x, each), stats
    for i, branch in enumerate(stack.branches):
      here = ctx._replace(
          stats={} if stats is None and ctx.stats is not None else stats,
          key=None if key is None else jax.random.fold_in(key, i))
      y, changed = branch.run(params, x, None, here)
      if changed:
        new = {**new, **changed}
      if gates is not None and gates[i] is not None:
        y = _gated(gates[i], y, branch.unscaled)
      x = branches.after(branch, x, y)
    x, outputs = stack_rows.leave(stack, x)
    seen = None if firsts is None else branches.first(x, firsts)
    return x, ((new, seen), outputs)
  return encoder


def fold_key(ctx, name):
  """Returns the context with a separate key for a part of the model."""
  if ctx.key is None:
    return ctx
  return ctx._replace(key=named_key(ctx.key, name))


def named_key(key, name):
  """Folds a name into a key.

  The hash is large on purpose: `split(key, n)[i]` equals `fold_in(key, i)`, so
  small numbers would repeat the keys of a split.
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _gated(gate, y, unscaled):
  """Multiplies a delta by a gate [B], `unscaled` keys by one of at most 1."""
  def times(gate, y):
    return gate.reshape(-1, *[1] * (y.ndim - 1)).astype(y.dtype) * y
  if not unscaled:
    return jax.tree.map(functools.partial(times, gate), y)
  return {key: times(jnp.minimum(gate, 1) if key in unscaled else gate, value)
          for key, value in y.items()}
