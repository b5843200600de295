"""Gradients of a batch computed in parts, one after the other.

A part needs the memory of its own images alone: that of a small device, or the
cache of a CPU core.
"""

import jax
import jax.numpy as jnp
from optax import microbatching

from adavit_jax import models
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases


def mean(function, trained, batch, key, parts):
  """Returns the mean of a function over the parts of a batch.

  Args:
    function: of (trained, batch, key); every float that it returns is a mean
      over the images of its batch, integers depend on no image.
    trained: pytree of parameters.
    batch: pytree of arrays [B, ...].
    key: PRNG key. With several parts, part i has the key folded with i.
    parts: k, divides B. Part i has the images i, i + k, and so on, of every
      device as many.

  Returns:
    What the function returns for the whole batch, up to rounding and to what
    it draws with the key.
  """
  if parts == 1:
    return function(trained, batch, key)
  size = len(jax.tree.leaves(batch)[0])

  def one(batch, rows):
    return function(trained, batch, jax.random.fold_in(key, rows[0]))

  def add(total, values, _):
    return jax.tree.map(
        lambda x, y: x + y / parts if jnp.issubdtype(y.dtype, jnp.floating)
        else y, total, values)

  averaged = microbatching.Accumulator(
      init=lambda x: jax.tree.map(jnp.zeros_like, x), update=add,
      finalize=lambda x: x, aggregate=lambda x: x)
  return microbatching.microbatch(
      one, argnums=(0, 1), microbatch_size=size // parts,
      accumulator=averaged)(batch, jnp.arange(size))


def check(system, mesh):
  """Checks `accumulate` of the phases of a run.

  Args:
    system: `System`.
    mesh: `Mesh` over which batches are sharded.

  Raises:
    ValueError: if a batch has no such parts, or its loss does not allow them.
  """
  for name in system.config.phases:
    c = system.config[name]
    field = f'{name}.accumulate={c.accumulate}'
    if c.accumulate == 1:
      continue
    if not phases.PHASES[name].mean:
      raise ValueError(
          f'{field} computes a batch in parts, but the loss of this phase '
          f'compares its images; set it to 1')
    shapes = jax.eval_shape(
        lambda: models.init_params(system.model, jax.random.key(0)))
    if 'batch_stats' in shapes:
      raise ValueError(
          f'{field} computes a batch in parts, but {system.config.model.name!r}'
          f' normalises with the statistics of a batch; set it to 1')
    if c.batch_size % c.accumulate:
      raise ValueError(f'{field} must divide {name}.batch_size={c.batch_size}')
    mesh_lib.check_batch_size(
        c.batch_size // c.accumulate, mesh,
        f'{name}.batch_size/{name}.accumulate')
