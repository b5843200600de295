"""Checks of a config against data, model and the run that it continues."""

import copy
import json
import os

from ml_collections import config_dict
import numpy as np

from adavit_jax import data
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.train import config as config_lib
from adavit_jax.train import phases
from adavit_jax.train.phases import joint

# What may differ between a run and its resumption: no more than rounding
# depends on it.
_FREE_FIELDS = ('log_every', 'eval_every', 'checkpoint_every',
                'eval_batch_size', 'data.data_dir', 'data.cache_dir',
                'init.workdir', 'init.weights', 'model.remat', 'model.unroll')


def sizes(config, dataset):
  """Checks that there are images enough.

  Args:
    config: see `train.config.default_config`.
    dataset: `Dataset`.

  Raises:
    ValueError: if a batch is larger than the training split, or there are too
      few held-out images for the warm start.
  """
  for phase in config.phases:
    size, available = config[phase].batch_size, len(dataset.train)
    if size > available:
      raise ValueError(f'{phase}.batch_size={size} is more than the '
                       f'{available} training images; set it lower')
  num = min(len(dataset.holdout), config.num_search)
  if 'warm_start' in config.phases and num < 2:
    raise ValueError(f'the warm start searches masks on held-out images and '
                     f'has {num} of them; set --config.data.holdout=0.1 and '
                     f'--config.num_search=1000')


def budget(config, system):
  """Checks that the policy can meet its `mac_target` by dropping layers.

  Args:
    config: see `train.config.default_config`.
    system: `System`.

  Raises:
    ValueError: if what always runs costs as much or more.
  """
  none = Actions(*map(np.zeros, plan.num_layers(system.model)))
  floor = float(system.cost.ratio(none))
  if config_lib.trains_policy(config) and config.mac_target <= floor:
    raise ValueError(
        f'mac_target={config.mac_target} cannot be met: stem, fixed '
        f'encoders, heads and policy nets alone are {floor:.3f} of the dense '
        f"model's MACs; set it higher, or num_fixed lower")


def both_heads(config, system):
  """Checks that a phase with a teacher trains both heads of a model.

  Args:
    config: see `train.config.default_config`.
    system: `System`.

  Raises:
    ValueError: if it would leave the class head as it is.
  """
  for phase in ('joint', 'static'):
    if phase in config.phases:
      joint.check_heads(phase, system)


def mask_goes_on(info, config):
  """Checks that a run does not forget the mask of the run that it begins from.

  Args:
    info: what a checkpoint of that run says of itself.
    config: see `train.config.default_config`.

  Raises:
    ValueError: if that run was tuned for a mask and no phase replaces it.
  """
  then = config_dict.ConfigDict(info['config'])
  first = phases.PHASES[config.phases[0]]
  if (phases.decider(then, info['phase']) == 'mask' and not first.decides
      and not first.from_scratch):
    raise ValueError(
        f'{config.init.workdir} was tuned for a mask, and phases='
        f'{tuple(config.phases)} would run all layers; train them in that run, '
        f"behind 'static', or give --config.init.phase of a phase before it")


def same_classes(info, dataset, workdir):
  """Checks that labels mean what they meant to a run.

  Args:
    info: what a checkpoint says of itself, see `loop.Trainer.info`.
    dataset: `Dataset` that goes with it now.
    workdir: directory of that run.

  Raises:
    ValueError: names the first class that differs. Another number of classes is
      another model, which is found elsewhere.
  """
  then, now = info['dataset']['class_names'], dataset.class_names
  if len(then) != len(now):
    return
  for i, (before, name) in enumerate(zip(then, now)):
    if before != name:
      raise ValueError(
          f'class {i} is {name!r} in this data and was {before!r} when '
          f'{workdir} was trained; name the classes as they were (those of a '
          f'folder are sorted by name)')


def same_images(info, dataset, workdir):
  """Checks that the images are split as they were when a run was trained.

  Args:
    info: as in `same_classes`.
    dataset: `Dataset` that goes with it now.
    workdir: directory of that run.

  Raises:
    ValueError: for other images, some of those that were trained on might be
      held out now. Another number of classes is found elsewhere.
  """
  then = info['dataset']
  if (then['num_classes'] == dataset.num_classes
      and then['split'] != data.fingerprint(dataset)):
    raise ValueError(
        f'the images are not those that {workdir} was trained on: some were '
        f'added, removed or put into another class; bring them back, or train '
        f'anew in another --workdir')


def same_holdout(info, config, dataset):
  """Checks that a run holds out what the run that it begins from held out.

  Args:
    info: what a checkpoint of that run says of itself.
    config: see `train.config.default_config`.
    dataset: `Dataset` of the config.

  Raises:
    ValueError: if both are of one data set and split it differently, or files
      of it were added or removed.
  """
  saved = info['config']
  if _data_set(saved['data']) != _data_set(config.data):
    return
  def split(config):
    seed = config['data']['seed']
    return (config['seed'] if seed is None else seed, config['data']['holdout'])
  then, now = split(saved), split(config)
  if then != now:
    raise ValueError(
        f'{config.init.workdir} split its images by seed {then[0]} and '
        f'holdout={then[1]}, this run by seed {now[0]} and holdout={now[1]}: '
        f'it could hold out images that its parameters were trained on; set '
        f'--config.data.seed={then[0]} --config.data.holdout={then[1]}')
  # Of built-in sets the seed says it all.
  if (config.data.name.startswith(('folder', 'tfds:'))
      and info['dataset']['split'] != data.fingerprint(dataset)):
    raise ValueError(
        f'{config.data.name!r} has other images now, or reads them otherwise, '
        f'than when {config.init.workdir} was trained on it: this run could '
        f'hold out images that its parameters were trained on; bring back what '
        f'was there, or train from the start on what there is now')


def _data_set(config_data):
  """What names the images, however it is spelled: no version, no ../."""
  name, folder = config_data['name'], config_data['data_dir']
  if name == 'folder':
    return name, os.path.realpath(os.path.expanduser(folder))
  return tuple(name.split(':')[:2])


def same_run(info, config, workdir, *, nets=True):
  """Checks that a run is continued with the config that it began with.

  Args:
    info: what the checkpoint says of itself, see `run.Saved`.
    config: see `train.config.default_config`.
    workdir: directory of the run.
    nets: False where no policy network exists, whose config then says nothing.

  Raises:
    ValueError: names up to five fields that differ and may not.
  """
  saved = copy.deepcopy(info['config'])
  now = json.loads(json.dumps(config.to_dict()))
  # A directory may have moved since, and '' was then its newest phase.
  saved['init']['phase'] = info['began_from'] or now['init']['phase']
  now['init']['phase'] = now['init']['phase'] or saved['init']['phase']
  if not nets:
    del saved['nets'], now['nets']
  differ = []
  def compare(a, b, path):
    if isinstance(a, dict) and isinstance(b, dict):
      for k in sorted({*a, *b}):
        compare(a.get(k), b.get(k), f'{path}.{k}' if path else k)
    elif a != b and path not in _FREE_FIELDS:
      differ.append(f'{path}: {a!r} then, {b!r} now')
  compare(saved, now, '')
  if differ:
    raise ValueError(f'{workdir} holds a run of another config '
                     f'({"; ".join(differ[:5])}); give another --workdir, or '
                     f'the same config to resume')
