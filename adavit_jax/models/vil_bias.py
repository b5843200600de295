"""The relative position biases of Vision Longformer, looked up in tables.

Pure functions on arrays. The bias of two tokens of the grid depends on how many
rows and columns they are apart; that of a global token and one of the grid on
the global token alone.
"""

import jax.numpy as jnp
import numpy as np

from adavit_jax.models import sliding_chunks
from adavit_jax.models import windows


def shapes(side, window, num_heads, num_global):
  """{name: shape} of the tables of one encoder.

  Args:
    side: of the grid of tokens.
    window: W, side of a chunk; 0 for full attention.
    num_heads: H.
    num_global: g.

  Returns:
    `table`: a row for each step in rows and columns, heads last.
    `table_global` [2, H, g]: of global queries, and of global keys.
    `table_within` [H, g, g]: among global tokens.
  """
  reach = 2 * window or side  # steps in one direction, and no step
  tables = dict(table=((2 * reach - 1)**2, num_heads))
  if num_global:
    tables.update(table_global=(2, num_heads, num_global),
                  table_within=(num_heads, num_global, num_global))
  return tables


def full(p, side):
  """The biases of full attention, [..., H, N, N], from `shapes`' tables."""
  grid = _heads_first(p['table'], windows.relative_positions(side))
  if 'table_global' not in p:
    return grid
  return jnp.concatenate(
      [of_global(p, side**2), _with_global_keys(p, grid)], axis=-2)


def local(p, window):
  """The biases of a chunk's queries, [..., H, W^2, g + 9 W^2].

  See `sliding_chunks.sliding_attention`.
  """
  near = _heads_first(p['table'], local_index(window))
  return near if 'table_global' not in p else _with_global_keys(p, near)


def of_global(p, num):
  """The biases of global queries, [..., H, g, g + num]."""
  queries = p['table_global'][..., 0, :, :, None]
  return jnp.concatenate([
      p['table_within'],
      jnp.broadcast_to(queries, (*queries.shape[:-1], num))], axis=-1)


def _with_global_keys(p, biases):
  """[..., H, Q, n] of keys in the grid -> [..., H, Q, g + n]."""
  keys = p['table_global'][..., 1, :, None, :]
  keys = jnp.broadcast_to(keys, (*biases.shape[:-1], keys.shape[-1]))
  return jnp.concatenate([keys, biases], axis=-1)


def local_index(window):
  """The row of the table for a chunk's queries and near keys, [W^2, 9 W^2].

  That of full attention is `windows.relative_positions`.
  """
  rows, columns = np.moveaxis(sliding_chunks.steps(window), -1, 0)
  reach = 2 * window
  index = (rows + reach - 1) * (2 * reach - 1) + columns + reach - 1
  return index.reshape(window**2, -1)


def _heads_first(table, index):
  """[..., T, H] -> [..., H, Q, n] for an index [Q, n]."""
  return jnp.moveaxis(jnp.take(table, index, axis=-2), -1, -3)
