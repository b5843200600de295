"""Runs a function of a batch in passes of a few images, which suits a CPU."""

import jax
from jax.sharding import AxisType


def on_cpu(run, x, size):
  """Returns run(x), on a CPU in passes of at most `size` images.

  The arrays between the operations of a pass then stay in the cache. Other
  platforms, a batch that is spread over devices, and a program for any number
  of images run the whole batch.

  Args:
    run: function of a pytree of arrays [B, ...] that treats every image alone
      and returns such a pytree.
    x: its argument.
    size: images in a pass, at most; the passes are of equal size.
  """
  first = jax.tree.leaves(x)[0]
  batch = first.shape[0]
  if not isinstance(batch, int) or batch <= size or _is_spread(first):
    return run(x)
  size = next(n for n in range(size, 0, -1) if batch % n == 0)

  def in_passes(x):
    y = jax.lax.map(run, jax.tree.map(
        lambda a: a.reshape(-1, size, *a.shape[1:]), x))
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), y)

  # Chosen when the program is lowered, so that a program for a TPU has no loop
  # even if a CPU compiles it.
  return jax.lax.platform_dependent(x, cpu=in_passes, default=run)


def _is_spread(x):
  """Whether XLA may spread the batch over devices.

  A loop over it would have each of them gather and compute the whole batch.
  """
  mesh = jax.typeof(x).sharding.mesh
  return any(size > 1 and kind != AxisType.Manual for size, kind in zip(
      mesh.axis_sizes, mesh.axis_types))
