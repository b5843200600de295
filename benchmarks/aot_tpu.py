"""Compiles the training step of every phase for a TPU slice, without a TPU.

Shows in advance whether a config fits a chip's memory, whether the gradient is
reduced over the chips, and how many conditionals remain:

  pip install -e '.[tpu]'
  python benchmarks/aot_tpu.py --config=configs/imagenet_policy.py \
      --topology=v5e:4x4

Memory is planned by XLA per chip: arguments + temporaries + outputs, minus the
outputs that reuse donated arguments. Large gathers mean that the sharding of
the batch axis was lost and every chip computes every image.
"""

import math
import re
import time
import types

from absl import app
from absl import flags
from ml_collections import config_flags

import topology  # before jax

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.data import data_config as data_config
from adavit_jax.data import folder
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases as phases_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib

_CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/imagenet_policy.py', 'File in configs/.',
    lock_config=True)
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5e:4x4', 'Slice to compile for, e.g. v5e:16x16, v4:2x2x4.')
_PHASES = flags.DEFINE_list(
    'phases', None, "Phases to compile. Default: the config's.")
_NUM_CLASSES = flags.DEFINE_integer('num_classes', 1000, 'Number of classes.')

_CONDITIONAL = re.compile(r'[\])}] conditional\(')

# Memory of one device, GiB; a device of v3 is half a chip.
_MEMORY = {'v3': 16, 'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  config = _CONFIG.value
  phases = _PHASES.value or config.phases
  try:
    config_lib.check(config)
    known = list(phases_lib.PHASES)
    if unknown := sorted(set(phases) - set(known)):
      raise ValueError(f'--phases has {unknown}; known: {known}')
    mesh = make_mesh(_TOPOLOGY.value)
    for phase in phases:
      mesh_lib.check_batch_size(
          config[phase].batch_size, mesh, f'{phase}.batch_size')
    system = make_system(config, _NUM_CLASSES.value)
  except ValueError as error:
    raise SystemExit(f'error: {error}') from error
  kind = _TOPOLOGY.value.partition(':')[0]
  print(f'{config.model.name}, {config.dtype}, remat={config.model.remat}, '
        f'unroll={config.model.unroll}, on {mesh.size} chips of {kind} with '
        f'{_MEMORY.get(kind, "?")} GiB each')
  print(f'{"phase":<12}{"batch":>7}{"compile s":>11}{"GiB/chip":>10}'
        f'{"of it state":>13}{"all-reduce":>12}{"gathered GiB":>14}'
        f'{"conditional":>13}')
  for phase in phases:
    start = time.monotonic()
    compiled = compile_step(system, phase, mesh)
    seconds = time.monotonic() - start
    total, held = memory(compiled)
    hlo = compiled.as_text()
    print(f'{phase:<12}{config[phase].batch_size:>7}{seconds:>11.1f}'
          f'{total:>10.2f}{held:>13.2f}'
          f'{len(collectives(hlo, "all-reduce")):>12}{gathered(hlo):>14.3f}'
          f'{len(_CONDITIONAL.findall(hlo)):>13}', flush=True)


def make_mesh(name):
  """Makes the data mesh over the devices of a TPU topology.

  Args:
    name: 'KIND:SHAPE', e.g. 'v5e:4x4'.

  Raises:
    ValueError: as `topology.devices`.
  """
  return jax.sharding.Mesh(
      np.asarray(topology.devices(name)), (mesh_lib.AXIS,),
      axis_types=(jax.sharding.AxisType.Auto,))


def make_system(config, num_classes):
  """Makes the `System` of a config for colour images, without a data set."""
  dataset = types.SimpleNamespace(
      num_classes=num_classes, channels=3, mean=folder.IMAGENET_MEAN,
      std=folder.IMAGENET_STD, target=None)
  return system_lib.create(config, dataset)


def compile_step(system, phase, mesh):
  """Compiles a phase's step as `runs.loop` jits it for a large data set."""
  c = step_lib.augmentation(system.config, phase)
  cropped = bool(c.resized_crop)
  size = c.image_size if cropped else data_config.load_size(c)
  num = system.config[phase].batch_size
  rows = mesh_lib.batch_sharding(mesh)
  state = mesh_lib.put_shapes(step_lib.abstract_state(system, phase), mesh)
  images = jax.ShapeDtypeStruct(
      (num, size, size, system.model.channels), jnp.uint8, sharding=rows)
  labels = jax.ShapeDtypeStruct((num,), jnp.int32, sharding=rows)
  step = jax.jit(step_lib.make_step(system, phase, 0, cropped=cropped),
                 donate_argnums=0, out_shardings=mesh_lib.replicated(mesh))
  return step.lower(state, images, labels).compile()


def memory(compiled):
  """Returns memory of one chip in GiB: (total, arguments and outputs alone)."""
  m = compiled.memory_analysis()
  held = (m.argument_size_in_bytes + m.output_size_in_bytes
          - m.alias_size_in_bytes)
  return (held + m.temp_size_in_bytes) / 2**30, held / 2**30


def collectives(hlo, kind):
  """Returns the result types of collectives, {channel: 'f32[8,4]{...}'}."""
  # A channel can appear in several copies of a fusion. Of an asynchronous
  # collective, only the start is counted.
  matches = re.findall(
      rf' = (.*[\])}}]) {kind}(?:-start)?\(.*channel_id=(\d+)', hlo)
  return {int(channel): result for result, channel in matches}


def gathered(hlo):
  """Returns the size of all results of all-gathers on one chip, GiB."""
  total = 0
  for result in collectives(hlo, 'all-gather').values():
    # The last shape, since the result of a start begins with its operand.
    bits, shape = re.findall(r'[a-z]+(\d*)\[([\d,]*)\]', result)[-1]
    size = math.prod(map(int, filter(None, shape.split(','))))
    total += size * int(bits or 8) / 8  # 'pred' has no number
  return total / 2**30


if __name__ == '__main__':
  app.run(main)
