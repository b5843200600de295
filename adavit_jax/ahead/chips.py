"""The chips to compile for: memory, speed, and devices per chip.

A device is what JAX counts. On v3 that is one of the two cores of a chip, which
have separate memories; on v4 and v5p, one program uses both cores.
"""

import math
import re
from typing import Any, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """A kind of TPU.

  Attributes:
    devices: JAX devices per chip.
    tflops: peak of a chip in bfloat16, 10^12 FLOP/s, as Google states it.
    usable_gib: memory of a device that libtpu 0.0.42.1 lets a program use;
      what it says of a program that does not fit.
    options: what `topologies.get_topology_desc` needs to be told.
  """
  devices: int
  tflops: float
  usable_gib: float
  options: dict[str, Any]


CHIPS = {
    'v3': Chip(2, 123., 15.48, {}),
    # Without it, each core would be a device.
    'v4': Chip(1, 275., 30.75, {'chip_config_name': 'megacore'}),
    'v5e': Chip(1, 197., 15.75, {}),
    'v5p': Chip(1, 459., 95.74, {}),
    'v6e': Chip(1, 918., 31.25, {}),
}

# Peaks in bfloat16 without sparsity, 10^12 FLOP/s, by a part of the name that
# JAX gives a GPU, as NVIDIA states them; the first that fits.
_GPUS = {'A100': 312., 'H100 PCIe': 756., 'H100 NVL': 835., 'H100': 989.,
         'H200': 989.}


class Slice(NamedTuple):
  """A TPU slice.

  Attributes:
    kind: a name in `CHIPS`.
    shape: chips along each axis of its network, e.g. (4, 4).
  """
  kind: str
  shape: tuple[int, ...]

  @property
  def chips(self):
    """Number of chips."""
    return math.prod(self.shape)

  @property
  def devices(self):
    """Number of JAX devices."""
    return self.chips * CHIPS[self.kind].devices


def parse(text) -> Slice:
  """Parses 'KIND:SHAPE', e.g. 'v5e:16x16' or 'v4:2x2x4'.

  Raises:
    ValueError: if the kind is unknown, or the shape has not as many axes as the
      network of that kind.
  """
  kind, _, shape = text.partition(':')
  if kind not in CHIPS or not re.fullmatch(r'\d+(x\d+)+', shape):
    raise ValueError(
        f'--compile_for={text} is unknown; give a TPU slice KIND:SHAPE with a '
        f"KIND of {sorted(CHIPS)}, such as v5e:4x4 or v4:2x2x4, or 'here' for "
        f'the devices of this machine, the only way for GPUs')
  sizes = tuple(map(int, shape.split('x')))
  axes = 3 if kind in ('v4', 'v5p') else 2
  if len(sizes) != axes:
    example = '2x2x4' if axes == 3 else '4x4'
    raise ValueError(f'--compile_for={text}: a slice of {kind} has {axes} axes;'
                     f' give its shape as in {kind}:{example}')
  return Slice(kind, sizes)


def gpu_tflops(device_kind) -> float | None:
  """Returns the peak of a GPU by its name in JAX; None if it is not known."""
  return next((peak for name, peak in _GPUS.items() if name in device_kind),
              None)
