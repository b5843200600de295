"""Stages of a Multi-Exit ViT whose adaptive layers a policy drops."""

import functools

import jax.numpy as jnp

from adavit_jax.models.actions import Actions
from adavit_jax.runtime import modes


_MODES = {'masked': modes.masked, 'cond': modes.cond, 'compact': modes.compact}


def stages(model, decide, mode=None, *, unroll=1, remat=False):
  """The stages of a `MultiExit` under per-image actions.

  The first stage asks the policy once, after the fixed encoders; every stage
  runs those of its encoders that the actions keep. An image that leaves early
  saves the layers behind its exit and those dropped before it.

  Args:
    model: a `MultiExit` with no exit before the M-th encoder.
    decide: (params, z1 [B, N, D]) -> `Actions` [B, L].
    mode: 'masked', 'cond' or 'compact', see `modes`; None for 'cond' on one
      image and 'compact' on more.
    unroll: encoders unrolled into one step of a scan, in 'masked'.
    remat: recompute the branches in the backward pass, in 'masked'.

  Returns:
    E functions `(params, images, carry) -> (carry, logits)` as
    `models.stages.stages` gives them; the carry is (tokens [B, N, D], keep
    [B, 2L]), after the last stage with finished prefix tokens alone, but in
    'masked'; `params` hold those of the model and whatever `decide` reads.

  Raises:
    ValueError: for an exit before the policy, or an unknown mode.
  """
  first = model.exits[0][0]
  if first < model.vit.num_fixed:
    raise ValueError(
        f'exits={model.exits}: the policy decides after num_fixed='
        f'{model.vit.num_fixed} encoders, no exit may lie before')
  if mode not in (None, *_MODES):
    raise ValueError(f'unknown mode {mode!r}; known: {sorted(_MODES)}')
  scan = dict(unroll=unroll, remat=remat)
  return [functools.partial(_stage, model, decide, mode, scan, i)
          for i in range(model.num_stages)]


def _stage(model, decide, mode, scan, index, params, images, carry):
  vit = model.vit
  if carry is None:
    x = modes.fixed(vit, params['vit'], images)
    keep = decide(params, x).keep
  else:
    x, keep = carry
  mode = mode or ('cond' if x.shape[0] == 1 else 'compact')
  start, stop = adaptive_span(model, index)
  if start < stop:
    actions = Actions(*(a[:, start:stop] for a in Actions.from_keep(keep)))
    if mode == 'masked':
      part = modes.segment(vit, params['vit'], start, stop)
      x, _ = modes.masked(*part, x, actions, **scan)
    else:
      last = index == model.num_stages - 1
      x = _MODES[mode](vit, params['vit'], x, actions, start=start,
                       read=vit.num_prefix if last else None)
  logits = model.apply(
      {'params': {k: params[k] for k in ('vit', 'heads')}}, x, index,
      method='exit')
  return (x, keep), logits


def adaptive_span(model, index):
  """As `MultiExit.span`, in numbers of adaptive encoders."""
  m = model.vit.num_fixed
  return tuple(max(end - m, 0) for end in model.span(index))


def dropped(model, index, keep):
  """Layers of a stage that actions [B, 2L] drop: `Actions` of counts [B]."""
  start, stop = adaptive_span(model, index)
  return Actions(*(jnp.sum(1 - a[:, start:stop], -1)
                   for a in Actions.from_keep(keep)))
