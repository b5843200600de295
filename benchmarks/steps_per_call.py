"""Times training steps, dispatched one by one and several in one program:

  python benchmarks/steps_per_call.py --config=configs/digits_exits.py

Each way does what training does between two lines of metrics: it draws the
images of its steps, sends them or their rows to the devices, and runs the
program. --cpu_time counts the time in which the process computes, over all
cores, and not that in which it waits: for a machine that others use too, and
one core.
"""

import json
import tempfile
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from adavit_jax import errors
from adavit_jax.runs import calls as calls_lib
from adavit_jax.runs import first_state
from adavit_jax.runs import loop
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import phase_start
from adavit_jax.train import step as step_lib
import timing

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'File in configs/, with :variant if it has variants.',
    lock_config=True)
_PHASE = flags.DEFINE_string('phase', None, 'One of its phases; None: first.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps of a call.', lower_bound=2)
_CPU_TIME = flags.DEFINE_bool('cpu_time', False, 'Time of the process alone.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed rounds.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  config = _CONFIG.value.copy_and_resolve_references()
  phase = _PHASE.value or config.phases[0]
  # So that nothing is due meanwhile.
  config.log_every = config.eval_every = config.checkpoint_every = 10**9
  config[phase].steps, config.phases = 10**9, (phase,)
  try:
    ways = {most: steps(config, phase, most) for most in (1, _STEPS.value)}
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  times = timing.alternate(
      ways, _REPEATS.value, time.process_time if _CPU_TIME.value else None)
  rows = []
  for most, seconds in times.items():
    each = seconds / _STEPS.value * 1e3
    rows.append(dict(
        steps_per_call=most, phase=phase, batch=config[phase].batch_size,
        step_ms=float(np.median(each)),
        quartiles_ms=np.percentile(each, (25, 75)).tolist(),
        time_ratio=float(np.median(seconds / times[1])),
        cores=timing.num_cores(), jax=jax.__version__,
        device=jax.devices()[0].device_kind, cpu_time=_CPU_TIME.value))
    print('{steps_per_call:>4} steps a call, {batch} images: {step_ms:8.3f} ms '
          'a step, {time_ratio:5.3f} of one by one'.format(**rows[-1]),
          flush=True)
  if _OUTPUT.value:
    with open(_OUTPUT.value, 'w') as f:
      json.dump(rows, f, indent=2)


def steps(config, phase, most):
  """Returns a function that makes `--steps` steps, `most` in each call."""
  config = config.copy_and_resolve_references()
  config.steps_per_call = most
  with tempfile.TemporaryDirectory() as workdir:
    trainer = loop.Trainer(config, workdir)
  state = phase_start.enter(trainer, first_state.begin(trainer).state, phase)
  calls = calls_lib.of_phase(
      trainer, trainer.dataset.train, phase, 0, 0, None)
  program = step_lib.jitted(calls_lib.program(
      trainer, step_lib.make_step(trainer.system, phase, 0)), state,
                            trainer.mesh)
  compiled = program.lower(state, *next(calls).inputs).compile()

  def run(i):
    del i
    nonlocal state
    for _ in range(_STEPS.value // most):
      state, metrics = compiled(state, *next(calls).inputs)
    return state.step, metrics

  return run


if __name__ == '__main__':
  orbax_manager.quiet_orbax()
  app.run(main)
