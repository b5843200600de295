"""Trains a model:

  python train.py --config=configs/digits_policy.py --workdir=DIR

A second call with the same arguments resumes. `--config.x=y` overrides any
field of the config.
"""

import re
import signal
import traceback

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.train import guards

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, with :variant where it has any.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory for checkpoints and metrics.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Joins the other hosts of a pod or cluster.')
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
    logging.debug('where it came from', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error
  if state is not None:
    print(f'done; now: python eval.py --workdir={_WORKDIR.value}')
  elif trainer.stopped_by == signal.SIGINT:
    raise SystemExit(128 + signal.SIGINT)  # so that no && goes on


def _last_of_each(argv):
  """Without overrides that come again: absl would join tuples given twice."""
  given = {}  # field, or place of what is none: its arguments
  field = None  # whose value is the next argument
  for i, arg in enumerate(argv):
    if field and not re.match('--?[a-zA-Z]', arg):
      given[field].append(arg)
      field = None
      continue
    name, equals = re.match(r'(?:--?(config\.[\w.]+)(=?))?', arg).groups()
    given.pop(name, None)  # so that it stands where it came last
    given[name or i] = [arg]
    field = None if equals else name
  return [arg for args in given.values() for arg in args]


def _parse(argv):
  """Parses the flags; a mistake in them ends in one sentence."""
  try:
    rest = flags.FLAGS(_last_of_each(argv))
    _CONFIG.value.phases  # here a file that is not there becomes an error
    return rest
  except (AttributeError, IndexError, KeyError) as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if 'ml_collections' not in frame.filename:
      raise  # a mistake in the config file itself
    cause = error.args[0]
    text = cause.args[0] if isinstance(cause, KeyError) else cause
    raise SystemExit('error: unknown field of the config: '
                     + '. '.join(str(text).splitlines())) from error
  except (flags.Error, OSError) as error:
    # Above the exception that a config file raised stands where it came from.
    *_, text = re.split(r'\n *(?=\w+Error: )', str(error))
    text = text.split('\n\nPass --help')[0].strip()
    if isinstance(error, OSError):
      text = text.splitlines()[-1].strip()
    raise SystemExit(f'error: {text}') from error


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  checkpoints.quiet_orbax()
  app.run(main, flags_parser=_parse)
