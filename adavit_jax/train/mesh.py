"""A mesh with the axes 'data' and 'fsdp': the batch is sharded over both.

Over 'fsdp' the arrays of the state are sharded too, see `train.sharded`; with
one device on that axis, every device has the whole state. The same code runs on
one chip and on a pod: a mean inside `jax.jit` is a mean over the global batch.
"""

import signal

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

DATA, FSDP = AXES = 'data', 'fsdp'


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


def make_mesh(data: int = -1, fsdp: int = 1, *, devices=None) -> Mesh:
  """Makes a mesh [data, fsdp] of devices.

  Args:
    data: devices along 'data'; -1 for as many as there are.
    fsdp: devices along 'fsdp'; -1 likewise.
    devices: the devices; None for all that JAX finds.

  Raises:
    ValueError: if a size is neither positive nor -1, if there are too few
      devices or they do not divide evenly, or if the mesh leaves out devices of
      a job with several processes.
  """
  devices = jax.devices() if devices is None else devices
  data, fsdp = _sizes(data, fsdp, len(devices))
  processes = len({device.process_index for device in devices})
  if processes > 1 and data * fsdp != len(devices):
    raise ValueError(
        f'mesh.data={data} x mesh.fsdp={fsdp} leaves out some of the '
        f'{len(devices)} devices of {processes} processes; set mesh.data=-1')
  # Ordered by process, like the rows of `shard_batch`, and devices of one host
  # next to each other along 'fsdp'; jax.make_mesh would follow the topology of
  # a TPU instead. Auto, because Linen layers carry no sharding annotations and
  # fail under the default Explicit mode.
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  return _mesh(devices[:data * fsdp], (data, fsdp))


def _sizes(data, fsdp, available):
  """Returns the sizes of both axes, with -1 replaced."""
  for name, size in ((DATA, data), (FSDP, fsdp)):
    if size < 1 and size != -1:
      raise ValueError(f'mesh.{name}={size} must be a positive number of '
                       f'devices, or -1 for the rest')
  if data == fsdp == -1:
    raise ValueError('mesh.data=-1 and mesh.fsdp=-1: only one of them can be '
                     'the rest; set mesh.fsdp=1')
  given = max(data, 1) * max(fsdp, 1)
  if given > available or -1 in (data, fsdp) and available % given:
    raise ValueError(
        f'mesh.data={data} and mesh.fsdp={fsdp} do not fit the {available} '
        f'visible devices: their product must be at most {available}, and with '
        f'data=-1, fsdp must divide it')
  rest = available // given
  return (rest if data == -1 else data), (rest if fsdp == -1 else fsdp)


def local_mesh() -> Mesh:
  """Makes a mesh of one local device, independent of other processes."""
  return _mesh(jax.local_devices()[:1], (1, 1))


def _mesh(devices, sizes):
  return Mesh(np.asarray(devices).reshape(sizes), AXES,
              axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Shards the leading axis of an array `[B, ...]` over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


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
    The same tree of global arrays `[B, ...]`, sharded over both axes.

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
