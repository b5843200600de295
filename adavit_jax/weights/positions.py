"""Resampling of position embeddings to another image size."""

from absl import logging
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


def adapt(tensor, arrays, num_prefix=1):
  """Resamples a position embedding of a square grid to the model's.

  Args:
    tensor: its `layout.Tensor`.
    arrays: arrays of the file by name, modified in place.
    num_prefix: number of tokens before those of the grid.
  """
  x = arrays.get(tensor.name)
  if x is None or x.ndim != 3 or x.shape[2] != tensor.shape[2]:
    return
  old, new = ((num - num_prefix)**0.5
              for num in (x.shape[1], tensor.shape[1]))
  if old >= 1 and old == int(old) and old != new:
    arrays[tensor.name] = resize(x, num_prefix, int(new))
    logging.info('%s resampled from %d x %d patches to %d x %d.', tensor.name,
                 old, old, new, new)


def interpolation(num_in, num_out):
  """The matrix of `resize` for one axis, float64 [num_out, num_in]."""
  index, weights = bicubic.taps(num_in, num_out)
  matrix = np.zeros((num_out, num_in))
  np.add.at(matrix, (np.arange(num_out)[:, None], index), weights)
  return matrix
