"""Compares the time of a training step under settings of its config:

  python benchmarks/step_time.py --config=configs/cifar10_ravit.py:cpu \\
      --data_dir=DIR --setting= --setting=model.unroll=1 \\
      --setting=exits.batch_size=256,model.unroll=1

Each --setting lists FIELD=VALUE; an empty one is the config as it is. The first
phase of the config is trained for a few steps, the settings in turns. Times are
CPU seconds of this process, which other processes disturb less than the time on
the clock does; --wall takes that instead, for accelerators and many cores. The
temporary memory is what a step needs beside its arguments and results.
"""

import functools
import tempfile
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from adavit_jax import errors
from adavit_jax.runs import loop
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
import run_recipes
import timing

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'File in configs/, with :variant if it has variants.',
    lock_config=True)
_SETTINGS = flags.DEFINE_multi_string(
    'setting', [''], 'FIELD=VALUE, or several separated by commas.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory.')
_REPEATS = flags.DEFINE_integer('repeats', 6, 'Timed rounds.', 1)
_WALL = flags.DEFINE_bool('wall', False, 'Time on the clock.')
flags.mark_flag_as_required('config')


def program(config, directory):
  """Compiles the step of a config's first phase.

  Args:
    config: of the run; its data are loaded.
    directory: an empty directory.

  Returns:
    (function of an ignored index that makes one step and returns its metrics;
    MiB that a step needs beside its arguments and results, None if unknown).
  """
  phase, trainer = config.phases[0], loop.Trainer(config, directory)
  system, mesh, split = trainer.system, trainer.mesh, trainer.dataset.train
  state = step_lib.begin_phase(
      system, state_lib.init_state(system, config.seed), phase, mesh)
  rows = np.arange(config[phase].batch_size)
  batch = mesh_lib.shard_batch((split.images(rows), split.labels[rows]), mesh)
  run = step_lib.jitted(
      step_lib.make_step(system, phase, 0), state, mesh)
  compiled, found = timing.compile_jit(run, state, *batch)
  return functools.partial(_step, compiled, [state], batch), found['temp_mb']


def _step(run, state, batch, index):
  del index
  state[0], metrics = run(state[0], *batch)  # the old one is donated
  return metrics


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    steps, sizes, memory = {}, {}, {}
    for setting in _SETTINGS.value:
      config = run_recipes.override(
          _CONFIG.value.copy_and_resolve_references(),
          run_recipes.parse_overrides(filter(None, setting.split(','))))
      if config.steps_per_call > 1:
        raise ValueError(f'steps_per_call={config.steps_per_call}: this times '
                         f'single steps; benchmarks/steps_per_call.py compares '
                         f'programs of several')
      if _DATA_DIR.value is not None:
        config.data.data_dir = _DATA_DIR.value
      name = setting or 'as it is'
      sizes[name] = config[config.phases[0]].batch_size
      with tempfile.TemporaryDirectory() as directory:
        steps[name], memory[name] = program(config, directory)
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  clock = time.perf_counter if _WALL.value else time.process_time
  times = timing.alternate(steps, _REPEATS.value, clock)
  print(f'{timing.num_cores()} cores, {jax.devices()[0].device_kind}, jax '
        f'{jax.__version__}\n| setting | ms a step | µs an image | temporary '
        f'MiB |\n|---|---|---|---|')
  for name, seconds in times.items():
    middle = np.median(seconds)
    mib = '-' if memory[name] is None else f'{memory[name]:.0f}'
    print(f'| {name} | {1e3 * middle:.1f} | {1e6 * middle / sizes[name]:.1f} | '
          f'{mib} |')


if __name__ == '__main__':
  app.run(main)
