"""Tokens in another order: sorted by a score, or as they were before."""

import jax.numpy as jnp


def take(x, order):
  """Reorders or selects tokens: x [B, N, ...], order [B, n] -> [B, n, ...]."""
  order = order.reshape(*order.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, order, axis=1)


def by_score(scores):
  """Order [B, N] that sorts scores [B, N] from high to low; ties stay."""
  return jnp.argsort(-scores, axis=1, stable=True)


def inverse(order):
  """The order [B, N] that undoes a permutation `order` [B, N]."""
  return jnp.argsort(order, axis=1)
