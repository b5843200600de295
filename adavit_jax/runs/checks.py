"""Checks a config against the data, the model and the run that it continues."""

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
from adavit_jax.train import step as step_lib
from adavit_jax.train.phases import joint

# Fields that may change when a run is resumed: they affect results by no more
# than rounding; `accumulate` also changes what a phase draws at random.
FREE_FIELDS = (
    'steps_per_call', 'log_every', 'eval_every', 'checkpoint_every',
    'eval_batch_size', 'data.data_dir', 'data.cache_dir', 'data.labels',
    'data.workers', 'init.workdir', 'init.weights', 'teacher.workdir',
    'teacher.weights', 'model.remat', 'model.unroll', 'mesh.data', 'mesh.fsdp',
    *(f'{phase}.accumulate' for phase in phases.PHASES))


def sizes(config, dataset):
  """Checks that there are enough images.

  Args:
    config: see `train.config.default_config`.
    dataset: `Dataset`.

  Raises:
    ValueError: if a batch is larger than the training split, there are too few
      held-out images for the warm start, or gray images would be distorted as
      only color images can be.
  """
  for phase in config.phases:
    size, available = config[phase].batch_size, len(dataset.train)
    augmentation = step_lib.augmentation(config, phase)
    data.check_channels(augmentation, dataset.channels)
    repeats = augmentation.repeats
    # A batch that is no multiple may begin and end amid the copies of an image.
    different = -(-size // repeats) + (size % repeats > 1)
    if different > available:
      raise ValueError(f'{phase}.batch_size={size} with data.repeats={repeats} '
                       f'takes {different} training images, but there are '
                       f'{available}; set it lower')
  num = min(len(dataset.holdout), config.num_search)
  if 'warm_start' in config.phases and num < 2:
    raise ValueError(f'the warm start needs at least 2 held-out images for its '
                     f'mask search but has {num} of them; set '
                     f'--config.data.holdout=0.1 and --config.num_search=1000')


def budget(config, system):
  """Checks that the policy can meet its `mac_target` by dropping layers.

  Args:
    config: see `train.config.default_config`.
    system: `System`.

  Raises:
    ValueError: if the parts that always run take as many MACs or more.
  """
  none = Actions(*map(np.zeros, plan.num_layers(system.model)))
  floor = float(system.cost.ratio(none))
  if config_lib.trains_policy(config) and config.mac_target <= floor:
    raise ValueError(
        f'mac_target={config.mac_target} cannot be met: stem, fixed '
        f'encoders, heads and policy nets alone take {floor:.3f} of the dense '
        f"model's MACs; set it higher, or num_fixed lower")


def both_heads(config, system):
  """Checks that phases with a teacher train both heads of a model.

  Args:
    config: see `train.config.default_config`.
    system: `System`.

  Raises:
    ValueError: if it would not train the class head.
  """
  distilled = ['joint', 'static']
  if config_lib.has_teacher(config):
    distilled += config.teacher.phases
  for phase in distilled:
    if phase in config.phases:
      joint.check_heads(phase, system)


def mask_goes_on(info, config):
  """Checks that a run keeps the mask of the run that it starts from.

  Args:
    info: the info of a checkpoint of that run, see `saved_run.Saved`.
    config: see `train.config.default_config`.

  Raises:
    ValueError: if that run was tuned for a mask and no phase replaces it.
  """
  then = config_dict.ConfigDict(info['config'])
  first = phases.PHASES[config.phases[0]]
  if (phases.decider(then, info['phase']) == 'mask' and not first.decides
      and not first.from_scratch):
    raise ValueError(
        f'{config.init.workdir} was tuned for a mask, but phases='
        f'{tuple(config.phases)} would run all layers; train these phases in '
        f"that run, after 'static', or set --config.init.phase to a phase "
        f'before it')


def same_classes(info, dataset, workdir):
  """Checks that classes have the names that they had in a run.

  Args:
    info: the info of a checkpoint, see `loop.Trainer.info`.
    dataset: `Dataset` to use with it.
    workdir: directory of that run.

  Raises:
    ValueError: if a class differs; the message names the first one. A different
      number of classes means a different model and is checked elsewhere.
  """
  then, now = info['dataset']['class_names'], dataset.class_names
  if len(then) != len(now):
    return
  for i, (before, name) in enumerate(zip(then, now)):
    if before != name:
      raise ValueError(
          f'class {i} is {name!r} in this data but was {before!r} when '
          f'{workdir} was trained; restore the class names (classes of a '
          f'folder are sorted by name)')


def same_images(info, dataset, workdir):
  """Checks that the images are split as they were when a run was trained.

  Args:
    info: as in `same_classes`.
    dataset: `Dataset` to use with it.
    workdir: directory of that run.

  Raises:
    ValueError: if the images differ, since training images might be held out
      now. A different number of classes is checked elsewhere.
  """
  then = info['dataset']
  if (then['num_classes'] == dataset.num_classes
      and _has_changed(then, dataset)):
    raise ValueError(
        f'the images differ from those that {workdir} was trained on: some '
        f'were added, removed, renamed or moved to another class; restore '
        f'them, or train from scratch in another --workdir')


def _has_changed(then, dataset):
  """Whether the images differ from those of an earlier run.

  Args:
    then: what the info of a checkpoint says of its data set. Names of files are
      compared if both have them: runs of earlier versions do not.
    dataset: `Dataset`.
  """
  names = {then.get('files', ''), dataset.files} - {''}
  return then['split'] != data.fingerprint(dataset) or len(names) > 1


def same_holdout(info, config, dataset):
  """Checks that a run holds out the same images as the run it starts from.

  Args:
    info: the info of a checkpoint of that run, see `saved_run.Saved`.
    config: see `train.config.default_config`.
    dataset: `Dataset` of the config.

  Raises:
    ValueError: if both runs split the same data set differently, or its files
      were added, removed or renamed.
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
        f'{config.init.workdir} split its images with seed {then[0]} and '
        f'holdout={then[1]}, this run with seed {now[0]} and holdout={now[1]}: '
        f'images held out now may have been trained on; set '
        f'--config.data.seed={then[0]} --config.data.holdout={then[1]}')
  # For built-in data sets the seed determines the split.
  if (config.data.name.startswith(('folder', 'packed', 'tfds:'))
      and _has_changed(info['dataset'], dataset)):
    raise ValueError(
        f'{config.data.name!r} has changed since {config.init.workdir} was '
        f'trained on it: images held out now may have been trained on; restore '
        f'the images and how they are read, or train from scratch on the '
        f'current ones')


def same_search(info, config, dataset):
  """Checks that a run with another run's policy knows which images chose it.

  A promise is made on the held-out images that chose no mask and no price.

  Args:
    info: as in `same_holdout`, of a run whose policy is kept.
    config: see `train.config.default_config`.
    dataset: `Dataset` of the config.

  Raises:
    ValueError: if both runs use the same data set and other numbers of its
      held-out images.
  """
  saved = info['config']
  if _data_set(saved['data']) != _data_set(config.data):
    return
  then, now = saved['num_search'], config.num_search
  if min(then, len(dataset.holdout)) != min(now, len(dataset.holdout)):
    raise ValueError(
        f'num_search={now}, but the policy of {config.init.workdir} was chosen '
        f'on {then} of the same held-out images; set --config.num_search='
        f'{then}, or train a new policy from --config.init.phase=dense')


def _data_set(config_data):
  """Identifies a data set by its name without version and its real path."""
  name, folder = config_data['name'], config_data['data_dir']
  if name in ('folder', 'packed'):
    local = '://' not in folder
    return name, (os.path.realpath(os.path.expanduser(folder)) if local
                  else folder)
  return tuple(name.split(':')[:2])


def same_run(info, config, workdir, *, nets=True):
  """Checks that a run is resumed with the config that it started with.

  Args:
    info: the info of the checkpoint, see `saved_run.Saved`.
    config: see `train.config.default_config`.
    workdir: directory of the run.
    nets: False if there are no policy networks, so that their config does not
      matter.

  Raises:
    ValueError: if fields differ that must not; the message names up to five.
  """
  saved = copy.deepcopy(info['config'])
  now = json.loads(json.dumps(config.to_dict()))
  # '' in the saved config stands for the newest phase at that time.
  saved['init']['phase'] = info['began_from'] or now['init']['phase']
  now['init']['phase'] = now['init']['phase'] or saved['init']['phase']
  if not nets:
    del saved['nets'], now['nets']
  differ = []
  def compare(a, b, path):
    if isinstance(a, dict) and isinstance(b, dict):
      for k in sorted({*a, *b}):
        compare(a.get(k), b.get(k), f'{path}.{k}' if path else k)
    elif a != b and path not in FREE_FIELDS:
      differ.append(f'{path}: was {a!r}, is now {b!r}')
  compare(saved, now, '')
  if differ:
    raise ValueError(f'{workdir} holds a run of another config '
                     f'({"; ".join(differ[:5])}); give another --workdir, or '
                     f'the same config to resume')
