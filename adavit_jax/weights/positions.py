"""Resampling of position embeddings to another image size."""

import numpy as np

_A = -0.75


def resize(positions, num_prefix, side):
  """Resamples the grid of a position embedding.

  Bicubic with a = -0.75, without antialiasing, corners not aligned, borders
  replicated, as in DeiT's fine-tuning (torch's `interpolate`).

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
  centre = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
  first = np.floor(centre).astype(int)
  matrix = np.zeros((num_out, num_in))
  for tap in (-1, 0, 1, 2):
    column = np.clip(first + tap, 0, num_in - 1)
    weight = _cubic(np.abs(centre - first - tap))
    np.add.at(matrix, (np.arange(num_out), column), weight)
  return matrix


def _cubic(x):
  """Cubic convolution kernel at distances x in [0, 2]."""
  near = ((_A + 2) * x - (_A + 3)) * x * x + 1
  far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
  return np.where(x <= 1, near, far)
