"""Gradients of a batch computed in parts, one after the other.

Activations then take the memory of a part.
"""

import jax
import jax.numpy as jnp

from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases


def mean(function, trained, batch, key, parts):
  """Returns the mean of a function over the parts of a batch.

  Args:
    function: of (trained, batch, key), see `Phase.mean`.
    trained: pytree of parameters.
    batch: pytree of arrays [B, ...].
    key: PRNG key. With several parts, part i has the key folded with i.
    parts: k, divides B. Part i has the images i, i + k, and so on, so that
      every device has an equal share of each part.

  Returns:
    What the function returns for the whole batch, up to rounding and to what
    it draws with the key. Integers are those of the last part.
  """
  if parts == 1:
    return function(trained, batch, key)

  def one(index):
    part = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, index],
                        batch)
    return function(trained, part, jax.random.fold_in(key, index))

  def add(total, index):
    return jax.tree.map(
        lambda x, y: x + y / parts if jnp.issubdtype(y.dtype, jnp.floating)
        else y, total, one(index)), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                       jax.eval_shape(one, 0))
  return jax.lax.scan(add, zeros, jnp.arange(parts))[0]


def check(config, mesh):
  """Checks that the batches of all phases split over devices, and into parts.

  Args:
    config: see `train.config.default_config`.
    mesh: devices that share a batch.

  Raises:
    ValueError: if `batch_size` or `accumulate` of a phase does not fit.
  """
  for name in config.phases:
    size, parts = config[name].batch_size, config[name].accumulate
    mesh_lib.check_batch_size(size, mesh, f'{name}.batch_size')
    if parts > 1 and not phases.PHASES[name].mean:
      raise ValueError(
          f'{name}.accumulate={parts} splits a batch, but the loss of this '
          f'phase depends on the batch as a whole; set it to 1')
    fits = lambda k: size % (k * mesh.size) == 0
    if not fits(parts):
      best = next(filter(fits, range(min(parts, size), 0, -1)))
      shared = f' for {mesh.size} devices to share' if mesh.size > 1 else ''
      raise ValueError(
          f'{name}.accumulate={parts} does not split {name}.batch_size={size} '
          f'into equal parts{shared}; set it to {best}')
