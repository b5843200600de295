"""A run that begins with parameters from elsewhere, and what comes with them.

Parameters expect images prepared as those they were trained on. So the config
of a run takes the preprocessing that it leaves open from where its parameters
come from, and keeps it: a checkpoint needs no other file.
"""

import re

from absl import logging

from adavit_jax import weights
from adavit_jax.data import data_config as data_config
from adavit_jax.runs import run as run_lib
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib


def with_preprocessing(config, saved):
  """Fills what `config.data` leaves open of mean, std, interpolation and crop.

  From the run that is resumed, else from the run in `init.workdir`, else from
  the file `init.weights`; a crop only where `load_size` leaves it open too.

  Args:
    config: see `train.config.default_config`.
    saved: `run.Saved` of the work directory, or None.

  Returns:
    The config, a copy if anything changes.

  Raises:
    ValueError: if `init.weights` cannot be read, or would not be: the run that
      is resumed began without.
  """
  init = config.init
  if (saved is not None and init.weights
      and not saved.info['config']['init']['weights']):
    raise ValueError(f'the run in the work directory did not begin with '
                     f'weights, init.weights={init.weights!r} would not be '
                     f'read; give another --workdir, or no weights to resume')
  if saved is not None:
    found = saved.info['config']['data']
  elif init.workdir and (info := _newest_info(init.workdir)):
    found = info['config']['data']
    # Left open there too, they were the data's own, which differ here.
    used = {field: info['dataset'][field] for field in ('mean', 'std')}
    found = {**found, **{k: v for k, v in used.items() if found[k] is None}}
  elif init.weights and any(
      config.data[field] is None for field in data_config.PREPROCESSING):
    found = _of_weights(init.weights, config.model.name)
  else:
    return config
  fields = {field: found[field] for field in data_config.PREPROCESSING
            if config.data[field] is None and found[field] is not None}
  if config.data.load_size:
    fields.pop('crop', None)
  if not fields:
    return config
  logging.info('preprocessing as the parameters expect it: %s', fields)
  config = config.copy_and_resolve_references()
  for field, value in fields.items():
    config.data[field] = tuple(value) if isinstance(value, list) else value
  return config


def _newest_info(workdir):
  with run_lib.Run(workdir) as run:
    saved = run.newest()
  return None if saved is None else saved.info


def _of_weights(path, name):
  checkpoint = weights.read(path)
  # vit_* and deit_* are one architecture: only a file whose own name does not
  # say which is taken for what the config calls the model.
  own = '/'.join(checkpoint.path.parts[-2:]).lower()
  named = re.search(r'(?<![a-z])(vit|deit)(?![a-z])', own)
  return weights.preprocessing(checkpoint, '' if named else name)._asdict()


def load(system):
  """Reads `config.init.weights`.

  Args:
    system: `System`.

  Returns:
    Groups of its backbone; the head is new if the file has other classes.

  Raises:
    ValueError: as `weights.load`; and if the head would be new where no phase
      trains it.
  """
  config = system.config
  key = state_lib.key_for(config.seed, 'new head')
  trained = set(phases.having('from_scratch'))  # also the last exit
  return state_lib.model_params(weights.load(
      system.model, config.init.weights, key,
      new_head=bool(trained.intersection(config.phases))))
