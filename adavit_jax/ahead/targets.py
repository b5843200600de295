"""The devices to compile for: those of a TPU slice, or of this machine."""

import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from adavit_jax.ahead import chips as chips_lib

HERE = 'here'


class Target(NamedTuple):
  """Devices, and what is known of them.

  Attributes:
    name: as it was given, e.g. 'v5e:4x4'.
    kind: name of the chip.
    chips: number of chips.
    devices: JAX devices, with `Target.per_chip` on each chip.
    tflops: peak of a chip in bfloat16, 10^12 FLOP/s; None if it is not known.
    usable: bytes of a device that a program may use; None likewise.
  """
  name: str
  kind: str
  chips: int
  devices: list[Any]
  tflops: float | None
  usable: int | None

  @property
  def per_chip(self):
    """Number of devices on a chip."""
    return len(self.devices) // self.chips


def find(name) -> Target:
  """Returns the `Target` of a name.

  For a slice, this process must not have used a device, since it is then
  limited to the CPU.

  Args:
    name: 'KIND:SHAPE' as in `chips.parse`, or 'here'.

  Raises:
    ValueError: if the name is unknown, libtpu is not installed or does not know
      the slice.
  """
  if name == HERE:
    return _here()
  wanted = chips_lib.parse(name)
  chip = chips_lib.CHIPS[wanted.kind]
  jax.config.update('jax_platforms', 'cpu')
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  # Any values; without them, libtpu logs that this is no TPU.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
  # It compiles alone: another process may do so too, or use a TPU.
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  try:
    devices = topologies.get_topology_desc(
        platform='tpu', topology_name=name, **chip.options).devices
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    if 'not installed' in str(error):
      raise ValueError(
          f'--compile_for={name} needs the compiler in libtpu, which is not '
          f"installed; pip install -e '.[tpu]'. No TPU is needed") from error
    raise ValueError(
        f'--compile_for={name} is not a slice that libtpu knows '
        f'({error}); give one such as v5e:4x4') from error
  if len(devices) != wanted.devices:
    raise ValueError(
        f'--compile_for={name}: libtpu makes {len(devices)} devices of its '
        f'{wanted.chips} chips, not {wanted.devices}; use libtpu 0.0.42.1, '
        f'which comes with jax 0.10.2')
  return Target(name, wanted.kind, wanted.chips, list(devices), chip.tflops,
                int(chip.usable_gib * chips_lib.GIB))


def _here():
  devices = jax.devices()
  first = devices[0]
  if first.platform == 'tpu':
    cores = {tuple(d.coords) for d in devices}
    number = len(cores)
  else:
    number = len(devices)
  stats = first.memory_stats() or {}
  return Target(HERE, first.device_kind, number, devices,
                chips_lib.gpu_tflops(first.device_kind),
                stats.get('bytes_limit'))
