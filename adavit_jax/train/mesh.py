"""One mesh axis, 'data': the batch is sharded over it, the state replicated.

The same code runs on one chip and on a pod: a mean inside `jax.jit` is a mean
over the global batch.
"""

import signal

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

AXIS = 'data'


def join_cluster():
  """Connects this process to the others of its pod or cluster.

  It comes before anything else that uses devices. `runs.peers` ends the others
  if one of them dies.

  Raises:
    ValueError: if JAX finds no cluster.
  """
  try:
    # `runs.peers` notices a death before that.
    jax.distributed.initialize(heartbeat_timeout_seconds=60)
  except ValueError as error:
    raise ValueError(f'--distributed found no pod or cluster ({error}); leave '
                     f'it out on a single host') from error
  # JAX's handler would only note it, and `runs.preemption` has its own.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_mesh(num_devices: int | None = None) -> Mesh:
  """Makes a mesh with the single axis 'data'.

  Args:
    num_devices: how many devices to use; None uses all of them.

  Raises:
    ValueError: if num_devices is not between 1 and the number of devices, or is
      less than all of them in a job with several processes, where each process
      must take part.
  """
  available = jax.device_count()
  num = available if num_devices is None else num_devices
  if not 1 <= num <= available:
    raise ValueError(
        f'num_devices={num}, but {available} devices are visible; choose 1 to '
        f'{available}, or set num_devices=None to use all')
  if jax.process_count() > 1 and num != available:
    raise ValueError(
        f'num_devices={num} leaves out some of the {available} devices of '
        f'{jax.process_count()} processes; set num_devices=None')
  # Ordered by process, like the rows of `shard_batch`; jax.make_mesh would
  # follow the topology of a TPU instead. Auto, because Linen layers carry no
  # sharding annotations and fail under the default Explicit mode.
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return _mesh(devices[:num])


def local_mesh() -> Mesh:
  """Makes a mesh of one local device, independent of other processes."""
  return _mesh(jax.local_devices()[:1])


def _mesh(devices):
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Shards the leading axis of an array `[B, ...]` over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Keeps a full copy of the array on each device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh,
                     name: str = 'batch_size') -> int:
  """Checks that a global batch splits evenly over devices and processes.

  Args:
    batch_size: the global batch size B.
    mesh: the mesh that will hold the batch.
    name: name of the batch size in the error message.

  Returns:
    The batch size of each process, B / number of processes.

  Raises:
    ValueError: if B is not a positive multiple of the number of devices.
  """
  devices, processes = mesh.size, jax.process_count()
  if batch_size < 1 or batch_size % devices or batch_size % processes:
    # Every process has the same number of devices in the mesh.
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
    batch: pytree of NumPy arrays `[B / processes, ...]`, the rows of this
      process. The global batch concatenates them in the order of processes.
    mesh: from `make_mesh`.

  Returns:
    The same tree of global arrays `[B, ...]`, sharded over the axis 'data'.

  Raises:
    ValueError: if a leaf has no leading axis, or it does not divide evenly.
  """
  sharding = batch_sharding(mesh)

  def put(path, x):
    x = np.asarray(x)
    where = 'batch' + jax.tree_util.keystr(path)
    if x.ndim == 0:
      raise ValueError(f'{where} is the scalar {x}; give it a leading batch '
                       'axis')
    check_batch_size(x.shape[0] * jax.process_count(), mesh,
                     f'the global size of {where}')
    return jax.make_array_from_process_local_data(sharding, x)

  return jax.tree_util.tree_map_with_path(put, batch)


def replicate(tree, mesh: Mesh):
  """Puts a full copy of every array, including typed keys, on each device.

  Args:
    tree: pytree of arrays, equal in all processes.
    mesh: from `make_mesh`.

  Returns:
    The same tree with the sharding `replicated(mesh)`.
  """
  sharding = replicated(mesh)

  several = jax.process_count() > 1

  def put(x):
    if several and isinstance(x, jax.Array) and x.is_fully_addressable:
      # With one device in each process, the shards of the result could not be
      # read if they came from an array on that device.
      x = np.asarray(x)
    return jax.device_put(x, sharding)

  def put_leaf(x):
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return put(x)
    # device_put does not support typed keys on devices of other processes.
    return jax.random.wrap_key_data(
        put(jax.random.key_data(x)), impl=jax.random.key_impl(x))

  return jax.tree.map(put_leaf, tree)


def put_shapes(tree, mesh: Mesh):
  """Gives every jax.ShapeDtypeStruct of a tree the sharding `replicated`."""
  sharding = replicated(mesh)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def fetch(tree):
  """Copies arrays to this host as NumPy, in one transfer.

  With several hosts, arrays must be replicated.

  Args:
    tree: pytree of arrays and Python numbers.

  Returns:
    The same tree of NumPy arrays.

  Raises:
    ValueError: if an array has shards on other hosts; reduce it inside jit
      first, or give it the sharding `replicated(mesh)`.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated):
      raise ValueError(
          f'cannot fetch {jax.tree_util.keystr(path) or "the array"} with '
          f'shape {x.shape} and sharding {x.sharding}: some of its shards are '
          'on other hosts; return it from jit with '
          'out_shardings=replicated(mesh)')
  return jax.tree.map(np.asarray, jax.device_get(tree))
