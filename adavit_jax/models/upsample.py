"""Upsampling of a square grid by a constant matrix for each axis.

DVT resizes a grid to twice its side by nearest neighbor, then pools it to the
new side by averages. Both are linear and separable, so that one small matrix on
each axis gives the same result, without the grid of twice the side.
"""

import jax.numpy as jnp
import numpy as np


def matrix(old, new):
  """The matrix of one axis, float64 [new, old]; its rows sum to 1.

  Args:
    old: side of the old grid.
    new: side of the new grid, old <= new <= 2 old.
  """
  middle = 2 * old
  nearest = np.eye(old)[np.arange(middle) // 2]  # [middle, old]
  i, j = np.arange(new)[:, None], np.arange(middle)
  # The cells of the new grid may overlap.
  inside = (j >= i * middle // new) & (j < -(-(i + 1) * middle // new))
  return inside / inside.sum(1, keepdims=True) @ nearest


def grid(x, old, new):
  """Upsamples tokens in row-major order.

  Args:
    x: [..., old * old, W].
    old: side of the old grid.
    new: side of the new grid.

  Returns:
    [..., new * new, W].
  """
  *batch, _, width = x.shape
  u = jnp.asarray(matrix(old, new), x.dtype)
  x = _first_axis(u, x.reshape(-1, old, old * width))
  x = _first_axis(u, x.reshape(-1, old, width))
  return x.reshape(*batch, new * new, width)


def _first_axis(u, x):
  """[new, old] times [M, old, W] to [M, new, W]."""
  # A batched product keeps the order of the axes. Without a batch axis, XLA
  # moves the new axis to the front, and transposes the result.
  return jnp.broadcast_to(u, (x.shape[0], *u.shape)) @ x


def _last_axis(x, old, new):
  """As `grid`, for the last axis: [..., old * old] to [..., new * new]."""
  u = jnp.asarray(matrix(old, new), x.dtype)
  y = (x.reshape(-1, old) @ u.T).reshape(-1, old, new)
  y = jnp.einsum('ai,mib->mab', u, y)
  return y.reshape(*x.shape[:-1], new * new)


def macs(old, new, width):
  """MACs of `grid` for one image."""
  return (old + new) * old * new * width


def features(x, old, new):
  """Upsamples features of tokens; those of the class token become zero.

  Args:
    x: [B, 1 + old * old, F], the class token first.
    old: side of the old grid.
    new: side of the new grid.

  Returns:
    [B, 1 + new * new, F].
  """
  return jnp.pad(grid(x[:, 1:], old, new), ((0, 0), (1, 0), (0, 0)))


def relations(x, old, new):
  """Upsamples the relations of queries and keys on both axes.

  Rows and columns of the class token are upsampled on the other axis alone.

  Args:
    x: [B, H, 1 + old * old, 1 + old * old], the class token first.
    old: side of the old grid.
    new: side of the new grid.

  Returns:
    [B, H, 1 + new * new, 1 + new * new].
  """
  x = jnp.concatenate([x[..., :1], _last_axis(x[..., 1:], old, new)], -1)
  return jnp.concatenate([x[..., :1, :], grid(x[..., 1:, :], old, new)], -2)


def relations_macs(old, new, heads):
  """MACs of `relations` for one image."""
  return macs(old, new, heads * (2 + old * old + new * new))
