"""Windows of tokens on a grid, and the relative positions in them."""

import numpy as np


def split(x, side, size, shuffled=False):
  """Splits a grid into windows.

  Args:
    x: tokens [B, N, D] in row-major order, N = side^2.
    side: of the grid; a multiple of `size`.
    size: side of a window.
    shuffled: whether the rows (and columns) of a window are side / size apart,
      so that each window covers the grid, instead of adjacent (Shuffle
      Transformer's spatial shuffle).

  Returns:
    [B * W, size^2, D] with W = (side / size)^2.
  """
  num, d = side // size, x.shape[-1]
  if shuffled:
    x = x.reshape(-1, size, num, size, num, d).transpose(0, 2, 4, 1, 3, 5)
  else:
    x = x.reshape(-1, num, size, num, size, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(-1, size**2, d)


def join(x, side, size, shuffled=False):
  """The inverse of `split`: [B * W, size^2, D] to tokens [B, N, D]."""
  num, d = side // size, x.shape[-1]
  x = x.reshape(-1, num, num, size, size, d)
  order = (0, 3, 1, 4, 2, 5) if shuffled else (0, 1, 3, 2, 4, 5)
  return x.transpose(order).reshape(-1, side**2, d)


def gather(table, size):
  """Looks up the bias of each query and key in a window.

  Args:
    table: [..., (2 * size - 1)^2], a bias for each relative position, by rows.
    size: side of the window.

  Returns:
    [..., size^2, size^2].
  """
  return table[..., relative_positions(size)]


def relative_positions(size):
  """The place in a table of each query's position relative to a key.

  Returns:
    [size^2, size^2]: (rows + size - 1) * (2 * size - 1) + (columns + size - 1).
  """
  along = np.arange(size)
  apart = along[:, None] - along + size - 1  # [queries, keys] of one axis
  rows, columns = apart[:, None, :, None], apart[None, :, None, :]
  return (rows * (2 * size - 1) + columns).reshape(size**2, size**2)
