"""Resampling of position embeddings to another image size."""

import numpy as np

from adavit_jax.models import bicubic


def resize(positions, num_prefix, side):
  """Resamples the grid of a position embedding.

  Bicubic as in DeiT's fine-tuning, see `models.bicubic`.

  Args:
    positions: [1, num_prefix + n * n, D].
    num_prefix: number of rows before the grid, which are kept.
    side: side of the new grid in patches.

  Returns:
    float32 [1, num_prefix + side * side, D].
  """
  prefix, grid = np.split(np.asarray(positions, np.float64), [num_prefix], 1)
  n = round(grid.shape[1] ** 0.5)
  matrix = interpolation(n, side)
  grid = np.einsum('ai,bj,ijd->abd', matrix, matrix, grid.reshape(n, n, -1),
                   optimize=True)
  grid = grid.reshape(1, side * side, -1)
  return np.concatenate([prefix, grid], axis=1).astype(np.float32)


def interpolation(num_in, num_out):
  """The matrix of `resize` for one axis, float64 [num_out, num_in]."""
  index, weights = bicubic.taps(num_in, num_out)
  matrix = np.zeros((num_out, num_in))
  np.add.at(matrix, (np.arange(num_out)[:, None], index), weights)
  return matrix
