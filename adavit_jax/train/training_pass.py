"""The forward pass of training, in two parts: before and after the policy.

Parameters are groups, not folded; batch statistics go from part to part in a
`Context`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.backbone import Context
from adavit_jax.models.backbone import X
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes


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


def context(params, key=None, progress=None):
  """Returns the `Context` of training."""
  return Context(True, key, params.get('batch_stats', {}), progress)


def begin(system, params, images, key=None, progress=None):
  """Runs the embedding and the fixed encoders.

  Args:
    system: `System`.
    params: groups.
    images: [B, S, S, C], normalized.
    key: PRNG key; None for a backbone without randomness.
    progress: see `Context`.

  Returns:
    `Start`.
  """
  model, ctx = system.model, context(params, key, progress)
  x, stats, _ = modes.embed(model, params, images, ctx)
  stop = model.num_fixed
  # A scan over few encoders saves no memory, so up to three are unrolled.
  x, ctx, early, _ = _run_encoders(
      model, params, x, images, ctx._replace(stats=stats), None, 0, stop,
      unroll=min(3, max(stop, 1)))
  return Start(x, ctx, early)


def finish(system, params, start, images, gates, *, nested=False):
  """Runs the encoders after the policy and the last exit.

  Args:
    system: `System`.
    params: groups.
    start: `Start` of B images.
    images: [B, S, S, C], normalized; may be None unless
      `plan.rereads_images`.
    gates: `Actions` of floats [B, ...] or [...].
    nested: whether to classify after every encoder, see `Finish`.

  Returns:
    `Finish`.
  """
  model, last = system.model, len(system.model.own_exits()) - 1
  read = plan.read_last(model) if nested else None
  x, ctx, early, firsts = _run_encoders(
      model, params, start.x, images, start.ctx, gates, model.num_fixed,
      plan.num_encoders(model), firsts=read, **system.scan)
  ctx = masked.fold_key(ctx, f'exit_{last}')
  classify = lambda x: model.classify(params['backbone'], x, last, ctx)
  inner = None
  if nested:
    firsts = jax.tree.map(
        lambda z1, a: jnp.concatenate([z1[None, :, :read], a[:-1]]), start.x,
        firsts)
    inner = jax.vmap(lambda x: classify(x)[0])(firsts)
  logits, changed = classify(x)
  return Finish(logits, start.early + early, inner,
                masked.merged(ctx.stats, changed))


def _run_encoders(model, params, x, images, ctx, gates, start, stop, **options):
  """Runs the encoders from start to stop, and the early exits between them.

  Returns:
    (activations, `Context`, list of logits [B, K], `firsts` of the last part
    as in `masked.run`).
  """
  early, firsts = [], None
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


def updates(stats):
  """Returns new batch statistics as the updates of a loss."""
  return {'params': {'batch_stats': stats}} if stats else {}
