"""Runs that start from existing parameters, and their preprocessing.

Parameters expect the preprocessing that they were trained with. Fields that the
config leaves unset are therefore taken from the source of the parameters and
saved with the run, so that a checkpoint needs no other file.
"""

import re

from absl import logging
import numpy as np

from adavit_jax import weights
from adavit_jax.data import data_config as data_config
from adavit_jax.runs import saved_run
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib


def with_preprocessing(config, saved):
  """Fills in unset mean, std, interpolation and crop of `config.data`.

  They come from the resumed run, else from the run in `init.workdir`, else from
  the file `init.weights`; crop only if `load_size` is unset too. A run that set
  `load_size` has the crop that follows from it.

  Args:
    config: see `train.config.default_config`.
    saved: `saved_run.Saved` of the work directory, or None.

  Returns:
    The config, a copy if anything changes.

  Raises:
    ValueError: if `init.weights` cannot be read, or is set for a resumed run
      that started without weights.
  """
  init = config.init
  if (saved is not None and init.weights
      and not saved.info['config']['init']['weights']):
    raise ValueError(f'init.weights={init.weights!r} would not be read, since '
                     f'the run in the work directory started without weights; '
                     f'give another --workdir, or no weights to resume')
  if saved is not None:
    source = saved.info['config']['data']
  elif init.workdir and (info := _newest_info(init.workdir)):
    source = info['config']['data']
    # If unset there too, that run used its data's values; these may differ.
    used = {field: info['dataset'][field] for field in ('mean', 'std')}
    source = {**source, **{k: v for k, v in used.items() if source[k] is None}}
    if size := source.get('load_size'):
      source['crop'] = source['image_size'] / size
  elif init.weights and any(
      config.data[field] is None for field in data_config.PREPROCESSING):
    source = preprocessing_of(init.weights, config.model.name)._asdict()
  else:
    return config
  fields = {field: source[field] for field in data_config.PREPROCESSING
            if config.data[field] is None and source[field] is not None}
  if config.data.load_size:
    fields.pop('crop', None)
  if not fields:
    return config
  logging.info('preprocessing taken from the source of the parameters: %s',
               fields)
  config = config.copy_and_resolve_references()
  for field, value in fields.items():
    config.data[field] = tuple(value) if isinstance(value, list) else value
  return config


def _newest_info(workdir):
  with saved_run.Run(workdir) as run:
    saved = run.newest()
  return None if saved is None else saved.info


def preprocessing_of(source, name):
  """Returns the `Preprocessing` that a file of weights expects.

  Args:
    source: path of the file, or a `weights.Checkpoint`.
    name: name of the model in the config.

  Raises:
    ValueError: as `weights.preprocessing`.
  """
  checkpoint = weights.read(source)
  # vit_* and deit_* have one architecture but different preprocessing. The
  # config's model name decides only if the file name contains neither.
  file_name = '/'.join(checkpoint.path.parts[-2:]).lower()
  named = re.search(r'(?<![a-z])(vit|deit)(?![a-z])', file_name)
  return weights.preprocessing(checkpoint, '' if named else name)


def load(system, class_names=()):
  """Reads `config.init.weights`.

  Args:
    system: `System`.
    class_names: K names of the classes of the data.

  Returns:
    Groups of its backbone; the head is new if the file has other classes.

  Raises:
    ValueError: as `weights.load`, and if the head would be new but no phase
      trains it.
  """
  config = system.config
  key = state_lib.key_for(config.seed, 'new head')
  trained = set(phases.having('from_scratch'))  # these train the last exit
  return state_lib.model_params(weights.load(
      system.model, config.init.weights, key,
      new_head=bool(trained.intersection(config.phases)),
      class_names=class_names))


def warn_near_chance(trainer, params):
  """Warns if weights that the first phase trusts hardly know the classes.

  Their file may have as many classes in another order, and need not name them.

  Args:
    trainer: `loop.Trainer` of a new run.
    params: groups, with those of `init.weights`.
  """
  config, split = trainer.config, trainer.dataset.holdout
  phase = phases.PHASES[config.phases[0]]
  if phase.from_scratch or phase.exits or trainer.system.target or (
      not len(split)):
    return
  out = trainer.evaluator.dense(params, split, config.num_search)
  num, counts = len(out.correct), np.bincount(split.labels)
  guess = counts.max() / counts.sum()
  if out.accuracy <= guess + 2 * (guess * (1 - guess) / num)**0.5:
    logging.warning(
        '%s classifies %.1f%% of %d held-out images, and the most frequent '
        'class is %.1f%% of them: if its classes are others or in another '
        'order, train a dense phase first.', config.init.weights,
        100 * out.accuracy, num, 100 * guess)
