"""Trains a model:

  python train.py --config=configs/digits_policy.py --workdir=DIR

The same command resumes a stopped run. `--config.x=y` overrides a field of the
config. With --compile_for=v5e:16x16 nothing is trained: it prints what every
phase takes on that TPU slice, which this machine need not have.
"""

import re
import signal
import traceback

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from adavit_jax import errors
from adavit_jax.ahead import compile_for
from adavit_jax.runs import loop
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import peers
from adavit_jax.train import mesh as mesh_lib

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'File in configs/, with :variant if it has variants.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory for checkpoints and metrics.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Run on all hosts of a pod or cluster.')
_COMPILE_FOR = flags.DEFINE_string(
    'compile_for', None, 'Only compile, for a TPU slice such as v5e:16x16 or '
    "v4:2x2x4, or for the devices 'here'; the work directory, if given, gets a "
    'JSON file.')
flags.mark_flag_as_required('config')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    if _COMPILE_FOR.value:
      compile_for.compile_for(
          _CONFIG.value, _COMPILE_FOR.value, _WORKDIR.value)
      return
    if _DISTRIBUTED.value:
      mesh_lib.join_cluster()
    with peers.watched():
      logging.info('%d devices of kind %s', jax.device_count(),
                   jax.devices()[0].device_kind)
      trainer = loop.Trainer(_CONFIG.value, _WORKDIR.value)
      state = trainer.train()
  except errors.USER_ERRORS as error:
    logging.debug('traceback', exc_info=True)  # shown with -v=1
    raise SystemExit(f'error: {error}') from error
  if state is not None:
    print(f'done; now: python eval.py --workdir={_WORKDIR.value}')
  elif trainer.stopped_by == signal.SIGINT:
    raise SystemExit(128 + signal.SIGINT)  # a command after && must not run


def _overrides(argv):
  """Splits arguments into pairs (config field, its arguments).

  `--config.x=1` and `--config.x` are one argument, `--config.x 1` is two. The
  field of any other argument is None.
  """
  i = 0
  while i < len(argv):
    override = re.match(r'--?(config\.[\w.]+)(=?)', argv[i])
    has_value = override and not override[2] and (
        i + 1 < len(argv) and not re.match('--?[a-zA-Z]', argv[i + 1]))
    stop = i + 2 if has_value else i + 1
    yield override and override[1], argv[i:stop]
    i = stop


def _last_of_each(argv):
  """Keeps the last of repeated overrides; absl would join repeated tuples."""
  pairs = list(_overrides(argv))
  last = {field: i for i, (field, _) in enumerate(pairs)}
  return [arg for i, (field, args) in enumerate(pairs)
          if field is None or last[field] == i for arg in args]


def _parse(argv):
  """Parses the flags; a mistake ends the program with a one-sentence error."""
  try:
    rest = flags.FLAGS(_last_of_each(argv))
    config = _CONFIG.value
    # Raises another error if the config file is missing.
    if getattr(config, 'phases', None) is None:
      raise SystemExit(f'error: --config: get_config() returns {config!r}; let '
                       f'it begin with default_config() of train.config')
    if not (_WORKDIR.value or _COMPILE_FOR.value):
      raise flags.IllegalFlagValueError('flag --workdir=None: give a directory')
    return rest
  except (AttributeError, IndexError, KeyError) as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if 'ml_collections' not in frame.filename:
      raise  # the config file itself has an error
    raise SystemExit('error: unknown field of the config: '
                     f'{_unknown_field(error)}') from error
  except SyntaxError as error:
    raise SystemExit(f'error: --config: {error.filename} is not Python: line '
                     f'{error.lineno}: {error.msg}') from error
  except (flags.Error, OSError) as error:
    raise SystemExit(f'error: {_last_sentence(error)}') from error


def _unknown_field(error):
  """Returns the sentences of ml_collections about an unknown field."""
  cause = error.args[0]
  text = cause.args[0] if isinstance(cause, KeyError) else cause
  return '. '.join(str(text).splitlines())


def _last_sentence(error):
  """Returns an error's text without the traceback of a config file before it.
  """
  *_, text = re.split(r'\n *(?=\w+Error: )', str(error))
  text = text.split('\n\nPass --help')[0].strip()
  return text.splitlines()[-1].strip() if isinstance(error, OSError) else text


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(main, flags_parser=_parse)
