"""Where the arrays of a state lie: large ones are sharded over the axis 'fsdp'.

Each device of that axis holds a part of the parameters, of the optimizer's
moments, of averages and of teachers (ZeRO; Rajbhandari et al., 2020,
arXiv:1910.02054). A step gathers the parameters that its loss reads, and
scatters the sum of their gradients.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from adavit_jax.train import mesh as mesh_lib

# Elements of the smallest array that is sharded: gathering a smaller one costs
# more than the 128 KiB that it saves.
_SMALLEST = 2**15


def spec(shape, num: int) -> PartitionSpec:
  """Returns how an array is sharded over `num` devices of the axis 'fsdp'.

  The largest axis that `num` divides is, of equal ones the last; no axis of an
  array with few elements.
  """
  axes = [i for i, size in enumerate(shape) if size % num == 0]
  if num == 1 or not axes or np.prod(shape) < _SMALLEST:
    return PartitionSpec()
  axis = max(axes, key=lambda i: (shape[i], i))
  return PartitionSpec(*[None] * axis, mesh_lib.FSDP)


def shardings(tree, mesh):
  """Returns the tree of NamedShardings of a tree of arrays or their shapes."""
  num = mesh.shape[mesh_lib.FSDP]
  return jax.tree.map(
      lambda x: NamedSharding(mesh, spec(x.shape, num)), tree)


def whole(tree):
  """Gathers the arrays of a tree, inside `jax.jit`; scatters their gradients.

  Otherwise XLA would shard activations as the parameters are, and send those.
  Without a mesh, or with one device on the axis 'fsdp', nothing is done.
  """
  if all(_num_shards(x) == 1 for x in jax.tree.leaves(tree)):
    return tree
  return _gathered(tree)


@jax.custom_vjp
def _gathered(tree):
  return _constrained(tree, lambda shape, num: PartitionSpec())


_gathered.defvjp(lambda tree: (_gathered(tree), None),
                 lambda _, gradient: (_constrained(gradient, spec),))


def _constrained(tree, spec_of):
  """Gives the arrays that are sharded the sharding spec_of(shape, number)."""
  def constrain(x):
    num = _num_shards(x)
    if not spec(x.shape, num):
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(
        jax.typeof(x).sharding.mesh, spec_of(x.shape, num)))
  return jax.tree.map(constrain, tree)


def _num_shards(x):
  """Returns the number of devices on the axis 'fsdp' of an array's mesh."""
  return dict(jax.typeof(x).sharding.mesh.shape).get(mesh_lib.FSDP, 1)


def put(tree, mesh):
  """Puts arrays, including typed keys, on the devices that hold them.

  Args:
    tree: pytree of arrays, equal in all processes.
    mesh: from `mesh.make_mesh`.

  Returns:
    The same tree with the shardings of `shardings`.
  """
  several = jax.process_count() > 1

  def put_array(x, sharding):
    if several and isinstance(x, jax.Array) and x.is_fully_addressable:
      # With one device in each process, the shards of the result could not be
      # read if they came from an array on that device.
      x = np.asarray(x)
    return jax.device_put(x, sharding)

  def put_leaf(x, sharding):
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return put_array(x, sharding)
    # device_put does not support typed keys on devices of other processes.
    return jax.random.wrap_key_data(
        put_array(jax.random.key_data(x), sharding),
        impl=jax.random.key_impl(x))

  return jax.tree.map(put_leaf, tree, shardings(tree, mesh))


def put_shapes(tree, mesh):
  """Gives every jax.ShapeDtypeStruct of a tree its sharding."""
  return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=sharding), tree, shardings(tree, mesh))
