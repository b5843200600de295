"""Which patch tokens the encoders of Evo-ViT update (arXiv:2108.01390)."""

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


def keep(x, *, scored):
  """The activations as they are, with the same keys as from `select`."""
  keys = ('tokens', 'rest', *(('scores', 'rest_scores') if scored else ()))
  return {key: x[key] for key in keys}
