"""Which patch tokens the encoders of Evo-ViT update (arXiv:2108.01390)."""

import jax
import jax.numpy as jnp

from adavit_jax.models import token_order


def select(x, num, *, scored):
  """Keeps the patch tokens of the highest scores and sets the others aside.

  Args:
    x: dict of activations. `tokens` [B, 1 + n, D] are the class token and the
      patches that encoders update, with `scores` [B, n]; `rest` [B, T - n, D]
      and `rest_scores` [B, T - n] are those set aside before, if any.
    num: K, number of patches to keep.
    scored: whether to return the scores, for another selection.

  Returns:
    A dict with these keys, of which K patches are in `tokens`; all patches are
    sorted by their scores, from high to low.
  """
  tokens, scores = x['tokens'], x['scores']
  if 'rest' in x:
    tokens = jnp.concatenate([tokens, x['rest']], axis=1)
    scores = jnp.concatenate([scores, x['rest_scores']], axis=1)
  order = token_order.by_score(scores)
  # The class token stays the first.
  tokens = token_order.take(
      tokens, jnp.pad(order + 1, ((0, 0), (1, 0))))
  x = dict(tokens=tokens[:, :1 + num], rest=tokens[:, 1 + num:])
  if scored:
    scores = token_order.take(scores, order)
    x.update(scores=scores[:, :num], rest_scores=scores[:, num:])
  return x


def reselects(layerwise, ctx):
  """Whether every encoder selects its tokens in this step, bool or [] bool.

  Args:
    layerwise: share of the steps of a phase in which it does; 1 for always.
    ctx: `Context`; without `progress`, tokens are selected once per stage.
  """
  if layerwise == 1:
    return True
  return layerwise > 0 and ctx.progress is not None and (
      ctx.progress < layerwise)


def select_if(condition, again, keep, x):
  """Returns again(x) or keep(x), of equal shapes, by a bool or a [] bool."""
  if isinstance(condition, bool):
    return again(x) if condition else keep(x)
  return jax.lax.cond(condition, again, keep, x)


def check_shares(model, *names):
  """Raises a ValueError for attributes that are not numbers in [0, 1]."""
  for name in names:
    value = getattr(model, name)
    if type(value) not in (int, float) or not 0 <= value <= 1:
      raise ValueError(f'{name}={value!r} must be a number in [0, 1]')


def keep(x, *, scored):
  """The activations as they are, with the same keys as from `select`."""
  keys = ('tokens', 'rest', *(('scores', 'rest_scores') if scored else ()))
  return {key: x[key] for key in keys}
