"""Attention within neighboring chunks of a grid, in linear time and memory.

The grid is cut into chunks of W x W tokens. A token attends to its own chunk,
to the eight around it and to a few global tokens, which attend to all (Vision
Longformer, arXiv:2103.15358). No array has N x N entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models.encoder import attend
from adavit_jax.models.encoder import attention
from adavit_jax.models.encoder import attention_logits

# Chunks around one are numbered row by row; this is the chunk itself.
_NUM_NEAR, _OWN = 9, 4


class Layout(NamedTuple):
  """The tokens: global ones first, then a grid in row-major order.

  Attributes:
    rows: of the grid.
    columns: of the grid.
    window: W, side of a chunk. The last chunks are filled up if W does not
      divide the sides of the grid.
    num_global: g.
    exact: whether a token only sees keys at most W rows and W columns away,
      as in a convolution, instead of all of the nine chunks.
  """
  rows: int
  columns: int
  window: int
  num_global: int = 0
  exact: bool = False

  @property
  def num_chunks(self):
    """(rows, columns) of chunks, (M, K)."""
    return -(-self.rows // self.window), -(-self.columns // self.window)

  @property
  def num_tokens(self):
    """N = g + rows * columns."""
    return self.num_global + self.rows * self.columns


def sliding_attention(q, k, v, at, biases=None, *, drawn=None):
  """Softmax attention of neighboring chunks and global tokens.

  Args:
    q: queries [B, H, N, d].
    k: keys [B, H, N, d].
    v: values [B, H, N, d].
    at: `Layout`.
    biases: (of a chunk's queries [H, W^2, g + 9 W^2], of the global queries
      [H, g, N]), added to the logits; None for zeros. Keys are in the order of
      `near_keys`.
    drawn: [] int in 0 to 7, the only neighbor that each chunk sees beside
      itself (random shift); None for all eight. Global queries see all.

  Returns:
    [B, H, N, d] in the dtype of `v`.
  """
  g = at.num_global
  local, for_global = (None, None) if biases is None else biases
  y = _local(q, k, v, at, local, drawn)
  if not g:
    return y
  if for_global is None:
    first = attention(q[:, :, :g], k, v)
  else:
    first = attend(attention_logits(q[:, :, :g], k) + for_global, v)
  return jnp.concatenate([first, y], axis=2)


def _local(q, k, v, at, biases, drawn):
  """The part of `sliding_attention` with queries of the grid."""
  b, h, _, d = q.shape
  g, (m, n), area = at.num_global, at.num_chunks, at.window**2
  near = range(_NUM_NEAR)
  if drawn is not None:
    near = _OWN, drawn + (drawn >= _OWN)
  seen = mask(at, near)
  if biases is not None:
    parts = biases[..., g:].reshape(h, area, _NUM_NEAR, area)
    biases = jnp.concatenate(
        [biases[..., :g], *(_take(parts, i, 2) for i in near)], axis=-1)

  def keys(x):  # [B, H, M * K, g + R W^2, d]
    return jnp.concatenate([
        jnp.broadcast_to(x[:, :, None, :g], (b, h, m * n, g, d)),
        near_keys(x[:, :, g:], at, near)], axis=3)

  one_axis = lambda x: x.reshape(b, h * m * n, *x.shape[-2:])
  logits = attention_logits(
      one_axis(to_chunks(q[:, :, g:], at)), one_axis(keys(k)))
  logits = logits.reshape(b, h, m * n, area, -1)
  if biases is not None:
    logits += biases[:, None]
  logits = jnp.where(seen, logits, -jnp.inf)
  y = attend(one_axis(logits), one_axis(keys(v)))
  return from_chunks(y.reshape(b, h, m * n, area, d), at)


def to_chunks(x, at):
  """[B, H, rows * columns, d] -> [B, H, M * K, W^2, d], filled with zeros."""
  b, h, _, d = x.shape
  w, (m, n) = at.window, at.num_chunks
  x = x.reshape(b, h, at.rows, at.columns, d)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, m * w - at.rows),
                  (0, n * w - at.columns), (0, 0)))
  x = x.reshape(b, h, m, w, n, w, d).swapaxes(3, 4)
  return x.reshape(b, h, m * n, w * w, d)


def from_chunks(x, at):
  """The inverse of `to_chunks`."""
  b, h, _, _, d = x.shape
  w, (m, n) = at.window, at.num_chunks
  x = x.reshape(b, h, m, n, w, w, d).swapaxes(3, 4)
  x = x.reshape(b, h, m * w, n * w, d)[:, :, :at.rows, :at.columns]
  return x.reshape(b, h, -1, d)


def near_keys(x, at, near=range(_NUM_NEAR)):
  """The tokens of the R chunks `near` each chunk, chunk after chunk.

  Args:
    x: [B, H, rows * columns, d].
    at: `Layout`.
    near: R numbers of chunks, int or [] int: the one above on the left is 0,
      the chunk itself is 4, the one below on the right is 8.

  Returns:
    [B, H, M * K, R * W^2, d]; zeros where there is no token.
  """
  b, h, _, d = x.shape
  x = to_chunks(x, at).reshape(b, h, *at.num_chunks, at.window**2, d)
  x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
  x = jnp.concatenate([_shifted(x, i, at, axis=2) for i in near], axis=-2)
  return x.reshape(b, h, -1, *x.shape[-2:])


def _shifted(x, i, at, axis):
  """Chunk `i` near each chunk, of chunks with an edge [..., M + 2, K + 2, ...].
  """
  for size, start in zip(at.num_chunks, (i // 3, i % 3)):
    x = _take(x, start, axis, size)
    axis += 1
  return x


def _take(x, start, axis, size=None):
  """A slice of an axis, whose start may be traced; an entry if size is None."""
  if isinstance(start, int):
    stop = slice(start, start + size) if size else start
    return x[(slice(None),) * axis + (stop,)]
  if size:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)
  return jax.lax.dynamic_index_in_dim(x, start, axis, keepdims=False)


def mask(at, near=range(_NUM_NEAR)):
  """Whether the queries of a chunk see a key.

  Args:
    at: `Layout`.
    near: see `near_keys`.

  Returns:
    Bools [M * K, W^2 or 1, g + R W^2]; the same for all queries of a chunk,
    unless `at.exact`.
  """
  w, (m, n) = at.window, at.num_chunks
  inside = lambda num, size: np.pad(  # of rows or columns, with an edge
      (np.arange(num * w) < size).reshape(num, w), ((1, 1), (0, 0)))
  rows, columns = inside(m, at.rows), inside(n, at.columns)
  valid = (rows[:, None, :, None] & columns[None, :, None]).reshape(
      m + 2, n + 2, w * w)
  parts = [_shifted(valid, i, at, 0).reshape(m * n, 1, w * w) for i in near]
  if at.exact:
    window = (np.abs(steps(w)) <= w).all(-1)  # [W^2, 9, W^2]
    parts = [part & _take(window, i, 1) for part, i in zip(parts, near)]
  everywhere = np.ones((*parts[0].shape[:-1], at.num_global), bool)
  xp = np if all(isinstance(part, np.ndarray) for part in parts) else jnp
  return xp.concatenate([everywhere, *parts], axis=-1)


def steps(window):
  """Rows and columns from each near key to each query, ints [W^2, 9, W^2, 2].
  """
  query = np.arange(window)
  key = np.arange(-window, 2 * window).reshape(3, window)
  apart = query[:, None, None] - key  # [queries, chunks, keys] of one axis
  shape = (window,) * 2 + (3,) * 2 + (window,) * 2
  rows = np.broadcast_to(apart[:, None, :, None, :, None], shape)
  columns = np.broadcast_to(apart[None, :, None, :, None], shape)
  return np.stack([rows, columns], -1).reshape(
      window**2, _NUM_NEAR, window**2, 2)


def sliding_macs(at, width):
  """MACs of `sliding_attention` with heads of D in total, for one image."""
  g, (m, n), area = at.num_global, at.num_chunks, at.window**2
  near = m * n * area * (g + _NUM_NEAR * area)
  return 2 * width * (near + g * at.num_tokens)
