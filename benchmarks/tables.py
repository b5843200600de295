"""Trains and evaluates the tables of papers, and prints them beside theirs:

  python benchmarks/tables.py ravit_cifar10 --schedule=cpu --seeds=2 \\
      --workdir=DIR --data_dir=DATA

It trains what is missing, one run for each row and seed, in a directory of its
own below DIR, and writes DIR/ravit_cifar10_cpu.md, .json and .png. The same
command goes on where it was stopped or killed; what is finished is neither
trained nor evaluated again. Results of each run are a small file in
DIR/results/; --results reads such files of other sessions, so that their runs
need not be trained here. --notrain only makes the table of what is there.

  python benchmarks/tables.py tau --workdir=RUN

This measures accuracy and MACs of a trained run with exits against one entropy
threshold for all of its exits, and writes RUN/tau.md, .json and .png.

paper_tables.py has the tables; docs/tables.md describes them.
"""

import os
import signal

from absl import app
from absl import flags
from absl import logging

from adavit_jax import errors
from adavit_jax.runs import orbax_manager
from adavit_jax.runtime import stopping
import run_recipes
import table_runs
import table_session
import threshold_sweep

_WORKDIR = flags.DEFINE_string(
    'workdir', None, "Directory of the table's runs; for tau that of a run.",
    required=True)
_SCHEDULE = flags.DEFINE_string(
    'schedule', 'cpu', "'cpu' or 'full', the paper's.")
_SEEDS = flags.DEFINE_integer('seeds', 2, 'Number of seeds.', 1)
_FIRST_SEED = flags.DEFINE_integer('first_seed', 0, 'The first of them.', 0)
_ROWS = flags.DEFINE_list(
    'rows', None, 'Runs to train and show, such as 0-3,1-3; * stands for any '
    'text. Default: all.')
_RESULTS = flags.DEFINE_list(
    'results', [], 'Folders with results of other sessions.')
_TRAIN = flags.DEFINE_bool('train', True, 'Train what is missing.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Data directory.')
_OVERRIDE = flags.DEFINE_multi_string(
    'override', [], 'FIELD=VALUE of the config of every run, such as '
    'exits.steps=100; may be given several times.')


def main(argv):
  if len(argv) != 2:
    raise app.UsageError('give the name of one table')
  try:
    if argv[1] == 'tau':
      workdir = os.path.expanduser(_WORKDIR.value)
      print(threshold_sweep.run(
          table_runs.Evaluated(workdir, _DATA_DIR.value), workdir))
      return
    first = _FIRST_SEED.value
    session = table_session.create(
        argv[1], _SCHEDULE.value, _WORKDIR.value, rows=_ROWS.value,
        seeds=range(first, first + _SEEDS.value), results=_RESULTS.value,
        data_dir=_DATA_DIR.value,
        overrides=run_recipes.parse_overrides(_OVERRIDE.value))
    print(table_session.run(session, train=_TRAIN.value))
  except stopping.Stopped as stopped:
    print('stopped by a signal; the same command goes on')
    if stopped.args == (signal.SIGINT,):
      raise SystemExit(128 + signal.SIGINT) from None  # not what is after &&
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(main)
