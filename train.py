"""Trains a model:

  python train.py --config=configs/digits_policy.py --workdir=DIR

The same command resumes a stopped run. `--config.x=y` overrides a field of the
config.
"""

import re
import signal
import traceback

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from adavit_jax.runs import loop
from adavit_jax.runs import orbax_manager
from adavit_jax.train import guards

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'File in configs/, with :variant if it has variants.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory for checkpoints and metrics.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Run on all hosts of a pod or cluster.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  logging.info('%d devices of kind %s', jax.device_count(),
               jax.devices()[0].device_kind)
  try:
    trainer = loop.Trainer(_CONFIG.value, _WORKDIR.value)
    state = trainer.train()
  except guards.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error
  if state is not None:
    print(f'done; now: python eval.py --workdir={_WORKDIR.value}')
  elif trainer.stopped_by == signal.SIGINT:
    raise SystemExit(128 + signal.SIGINT)  # a command after && must not run


def _last_of_each(argv):
  """Keeps the last of repeated overrides; absl would join repeated tuples."""
  groups = {}  # config field, or index of another argument -> its arguments
  field = None  # the field whose value is the next argument
  for i, arg in enumerate(argv):
    if field and not re.match('--?[a-zA-Z]', arg):
      groups[field].append(arg)
      field = None
      continue
    name, equals = re.match(r'(?:--?(config\.[\w.]+)(=?))?', arg).groups()
    groups.pop(name, None)  # moves the field to its last position
    groups[name or i] = [arg]
    field = None if equals else name
  return [arg for args in groups.values() for arg in args]


def _parse(argv):
  """Parses the flags; a mistake ends the program with a one-sentence error."""
  try:
    rest = flags.FLAGS(_last_of_each(argv))
    _CONFIG.value.phases  # raises if the config file is missing
    return rest
  except (AttributeError, IndexError, KeyError) as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if 'ml_collections' not in frame.filename:
      raise  # the config file itself has an error
    cause = error.args[0]
    text = cause.args[0] if isinstance(cause, KeyError) else cause
    raise SystemExit('error: unknown field of the config: '
                     + '. '.join(str(text).splitlines())) from error
  except (flags.Error, OSError) as error:
    # The text of an error in a config file starts with its traceback.
    *_, text = re.split(r'\n *(?=\w+Error: )', str(error))
    text = text.split('\n\nPass --help')[0].strip()
    if isinstance(error, OSError):
      text = text.splitlines()[-1].strip()
    raise SystemExit(f'error: {text}') from error


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(main, flags_parser=_parse)
