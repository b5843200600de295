"""One mesh axis, 'data': the batch is split over it, the state replicated.

The same code runs on one chip and on a pod: a mean inside `jax.jit` is a mean
over the global batch, whoever holds the rows.
"""

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

AXIS = 'data'


def make_mesh(num_devices: int | None = None) -> Mesh:
  """Makes a mesh with the single axis 'data'.

  Args:
    num_devices: how many devices to use; None uses all of them.

  Raises:
    ValueError: more devices were asked for than there are, or fewer than all
      in a multi-host job, where each process must take part.
  """
  available = jax.device_count()
  num = available if num_devices is None else num_devices
  if not 1 <= num <= available:
    raise ValueError(
        f'num_devices={num} but {available} devices are visible; ask for 1 to '
        f'{available}, or set num_devices=None to use all')
  if jax.process_count() > 1 and num != available:
    raise ValueError(
        f'num_devices={num} leaves out some of the {available} devices of '
        f'{jax.process_count()} processes; set num_devices=None')
  # By process, as `shard_batch` lays the rows; jax.make_mesh would follow the
  # wiring of a TPU instead. Auto, because Linen layers carry no sharding
  # annotations and fail under the default Explicit mode.
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return _mesh(devices[:num])


def local_mesh() -> Mesh:
  """Makes a mesh of one device of this process, which needs no other one."""
  return _mesh(jax.local_devices()[:1])


def _mesh(devices):
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis of an array `[B, ...]` over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Holds a whole copy of the array on each device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh,
                     name: str = 'batch_size') -> int:
  """Checks that a global batch splits evenly over devices and processes.

  Args:
    batch_size: the global batch B, in examples.
    mesh: the mesh that will hold it.
    name: what the user calls this number, for the message.

  Returns:
    The batch that each process loads, B / number of processes.

  Raises:
    ValueError: B is no positive multiple of the number of devices.
  """
  devices, processes = mesh.size, jax.process_count()
  if batch_size < 1 or batch_size % devices or batch_size % processes:
    # Every process holds the same number of devices of the mesh.
    below = batch_size // devices * devices
    choices = f'{below} or {below + devices}' if below > 0 else f'{devices}'
    hosts = (f' ({processes} processes with {devices // processes} each)'
             if processes > 1 else '')
    raise ValueError(
        f'{name}={batch_size} must be a positive multiple of the {devices} '
        f'devices{hosts}; set {name} to {choices}, or use fewer devices')
  return batch_size // processes


def shard_batch(batch, mesh: Mesh):
  """Puts this process's part of a batch on its devices.

  Args:
    batch: pytree of NumPy arrays `[B / processes, ...]`. Each process gives
      its own rows; together, in the order of the processes, they are the batch.
    mesh: from `make_mesh`.

  Returns:
    The same tree of global arrays `[B, ...]`, split over the axis 'data'.

  Raises:
    ValueError: a leaf has no leading axis, or it does not split evenly.
  """
  sharding = batch_sharding(mesh)

  def put(path, x):
    x = np.asarray(x)
    where = 'batch' + jax.tree_util.keystr(path)
    if x.ndim == 0:
      raise ValueError(f'{where} is the scalar {x}; a batch leaf needs a '
                       'leading batch axis')
    check_batch_size(x.shape[0] * jax.process_count(), mesh,
                     f'the global size of {where}')
    return jax.make_array_from_process_local_data(sharding, x)

  return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree, mesh: Mesh):
  """Puts a whole copy of every array, typed keys too, on each device.

  Args:
    tree: pytree of arrays, equal in all processes.
    mesh: from `make_mesh`.

  Returns:
    The same tree with the sharding `replicated(mesh)`.
  """
  sharding = replicated(mesh)

  def put(x):
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.device_put(x, sharding)
    # JAX puts no typed key onto devices of other processes.
    data = jax.device_put(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))

  return jax.tree.map(put, tree)


def put_shapes(tree, mesh: Mesh):
  """Gives every jax.ShapeDtypeStruct of a tree the sharding `replicated`."""
  sharding = replicated(mesh)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def fetch(tree):
  """Copies arrays to this host as NumPy, in one transfer.

  Works on several hosts for replicated arrays, which each host holds whole.

  Args:
    tree: pytree of arrays and Python numbers.

  Returns:
    The same tree of NumPy arrays.

  Raises:
    ValueError: an array has parts on other hosts; reduce it inside jit first,
      or give it the sharding `replicated(mesh)`.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated):
      raise ValueError(
          f'cannot fetch {jax.tree_util.keystr(path) or "the array"} with '
          f'shape {x.shape} and sharding {x.sharding}: parts of it are on '
          'other hosts; return it from jit with out_shardings=replicated(mesh)')
  return jax.tree.map(np.asarray, jax.device_get(tree))
