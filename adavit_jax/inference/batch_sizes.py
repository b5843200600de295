"""Runs programs on batches of a few sizes, so that few are compiled."""

import numbers

import jax
import numpy as np


def up_to(largest):
  """Returns 1, 2, 3, 4, 6, 8, 12, ... up to `largest`: below 1/3 padding."""
  sizes = {largest}
  for base in (1, 3):
    size = base
    while size < largest:
      sizes.add(size)
      size *= 2
  return sorted(sizes)


def run(program, images, sizes):
  """Runs a program on images in padded batches.

  Args:
    program: (images [B, ...], valid [B] bool, False for padding, index of the
      first image) -> tree of arrays [B, ...].
    images: [n, ...].
    sizes: ascending batch sizes; more images than the largest are split.

  Returns:
    The tree of NumPy arrays [n, ...].
  """
  largest, parts = sizes[-1], []
  for start in range(0, len(images), largest):
    batch = images[start:start + largest]
    num = len(batch)
    size = next(s for s in sizes if s >= num)
    if num < size:
      batch = np.pad(batch, [(0, size - num), *[(0, 0)] * (batch.ndim - 1)])
    parts.append(program(batch, np.arange(size) < num, start))
    if len(parts) > 2:  # so that the device holds at most three parts
      parts[-3] = jax.device_get(parts[-3])
  # Only the last part is padded.
  return jax.tree.map(lambda *x: np.concatenate(x)[:len(images)],
                      *jax.device_get(parts))


def check(largest):
  """Raises a ValueError unless `largest` is a positive integer."""
  if not isinstance(largest, numbers.Integral) or largest < 1:
    raise ValueError(f'max_batch_size={largest!r} is not a positive integer')
