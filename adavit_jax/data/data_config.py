"""The `config.data` fields: defaults and checks."""

import importlib.util
import math
import numbers

import ml_collections
from ml_collections import config_dict

SOURCES = (
    'digits', 'digit_scenes', 'rotated_digits', 'folder', 'packed', 'tfds:NAME')
_BUILT_IN = SOURCES[:3]
_MAX_SIZE = 8192
_MAX_COMPOSED = 10_000_000
INTERPOLATIONS = ('bicubic', 'bilinear')
# Fields that belong to the weights: the preprocessing they were trained with.
PREPROCESSING = ('mean', 'std', 'interpolation', 'crop')


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.data` for scikit-learn's digits, without augmentation."""
  return ml_collections.ConfigDict(dict(
      name='digits',  # one of `SOURCES`
      data_dir='',  # of the folder, of the packed set, or of tfds
      labels='',  # folder: file of labels, see data.label_file; '': its folders
      cache_dir='',  # '' = $ADAVIT_CACHE, else ~/.cache/adavit_jax
      image_size=8,  # side of the model's input in pixels
      load_size=0,  # side of the decoded images in pixels; 0 = by crop
      # None: from the weights or run that training starts from, if any.
      mean=config_dict.placeholder(tuple),  # in 0..1; default: of the data
      std=config_dict.placeholder(tuple),  # in 0..1; default: of the data
      interpolation=config_dict.placeholder(str),  # default: bicubic
      crop=config_dict.placeholder(float),  # image_size / load_size; default: 1
      # Fraction of the training split for calibration and model selection.
      holdout=0.1,
      # Seed of the held-out images and of composed images; None: the run's
      # seed. A run that starts from another must hold out the same images.
      seed=config_dict.placeholder(int),
      on_corrupt='error',  # 'error' | 'skip'
      # Processes of each host that decode training images of sets too large for
      # memory; 0: threads. With them, the extra `input` is needed.
      workers=0,
      scenes=dict(kind='mix', num_train=30_000, num_test=4_000),
      rotations=dict(num_train=20_000, num_test=2_000, noise=0.5),
      crop_padding=0,  # zero pixels on every side before the random crop
      # Overrides crop_padding in phases with a policy, which could otherwise
      # learn from borders that never occur at inference; None: crop_padding.
      policy_crop_padding=config_dict.placeholder(int),
      policy_resized_crop=config_dict.placeholder(float),  # likewise
      flip=False,  # flip half of the images left to right
      resized_crop=0.0,  # smallest area fraction that is kept; 0 = off
      # Mean magnitude in 0..10 (0 = off) and deviation of the operations of
      # RandAugment, and how many there are.
      rand_augment=dict(magnitude=0.0, std=0.5, layers=2),
      color_jitter=0.0,  # of brightness, contrast and saturation; 0 = off
      erasing=0.0,  # probability of random erasing
      repeats=1,  # augmented copies of each image in a batch
      mixup=0.0,  # alpha of Beta(alpha, alpha); 0 = off
      cutmix=0.0,  # alpha of Beta(alpha, alpha); 0 = off
      label_smoothing=0.0,
  ))


def load_size(config_data) -> int:
  """Returns the side in pixels that images are decoded to."""
  if config_data.load_size:
    return config_data.load_size
  # A file of weights has the crop alone; rounding must not lose a pixel.
  return math.floor(config_data.image_size / (config_data.crop or 1) + 1e-6)


def interpolation(config_data) -> str:
  """Returns the interpolation for resizing, one of `INTERPOLATIONS`."""
  return config_data.interpolation or INTERPOLATIONS[0]


def check_source(config_data) -> None:
  """Raises ValueError if a field of the data source is invalid."""
  name = config_data.name
  if name not in SOURCES[:-1] and not (
      name.startswith('tfds:') and len(name) > len('tfds:')
  ):
    raise ValueError(f'config.data.name={name!r} must be one of {SOURCES}')
  if config_data.data_dir and name in _BUILT_IN:
    raise ValueError(
        f'config.data.data_dir={config_data.data_dir!r} is not read by'
        f' {name!r}, which needs no files: leave it empty, or set data.name to'
        " 'folder', 'packed' or tfds:NAME")
  if config_data.labels and name != 'folder':
    raise ValueError(
        f'config.data.labels={config_data.labels!r} is not read by {name!r}:'
        " leave it empty, or set data.name='folder'")
  for field, low in (('image_size', 1), ('load_size', 0)):
    if not low <= config_data[field] <= _MAX_SIZE:
      raise ValueError(
          f'config.data.{field}={config_data[field]} must be in'
          f' {low}..{_MAX_SIZE} pixels')
  _check_preprocessing(config_data)
  if load_size(config_data) < config_data.image_size:
    raise ValueError(
        f'config.data.load_size={config_data.load_size} is smaller than'
        f' image_size={config_data.image_size}: raise it, or set it to 0')
  if not 0 <= config_data.holdout <= 0.5:
    raise ValueError(
        f'config.data.holdout={config_data.holdout} must be in 0..0.5: it is'
        ' the fraction of the training split that is held out')
  if config_data.workers < 0:
    raise ValueError(
        f'config.data.workers={config_data.workers} must be at least 0: set it'
        ' to 0 for threads, or to a number of processes')
  if config_data.workers and importlib.util.find_spec('grain') is None:
    raise ValueError(
        f'config.data.workers={config_data.workers} needs grain: install the'
        " extra with pip install -e '.[input]', or set it to 0 for threads")
  if config_data.on_corrupt not in ('error', 'skip'):
    raise ValueError(
        f'config.data.on_corrupt={config_data.on_corrupt!r} must be'
        " 'error' or 'skip'")


def _check_preprocessing(config_data) -> None:
  if config_data.interpolation not in (None, *INTERPOLATIONS):
    raise ValueError(
        f'config.data.interpolation={config_data.interpolation!r} must be one'
        f' of {INTERPOLATIONS}')
  crop = config_data.crop
  if crop is not None and not 0 < crop <= 1:
    raise ValueError(
        f'config.data.crop={crop} must be in (0, 1]: it is the fraction of the'
        ' short side that the center crop keeps')
  if crop is not None and config_data.load_size:
    raise ValueError(
        f'config.data.crop={crop} and load_size={config_data.load_size} both'
        ' set the size of decoded images: set load_size=0, or crop=None')
  for field, low in (('mean', 0), ('std', 1 / 512)):
    values = config_data[field]
    if values is not None and not all(
        isinstance(x, numbers.Real) and low <= x <= 1 for x in values):
      raise ValueError(
          f'config.data.{field}={tuple(values)} must be numbers in'
          f' {low:.3g}..1: white is 1')


def check_count(field, count) -> None:
  """Raises ValueError unless so many images can be composed in memory."""
  if not 2 <= count <= _MAX_COMPOSED:
    raise ValueError(
        f'config.data.{field}={count} must be in 2..{_MAX_COMPOSED}')


def check_augmentation(config_data) -> None:
  """Raises ValueError if an augmentation field is out of range."""
  for field in ('crop_padding', 'policy_crop_padding'):
    if (config_data[field] or 0) < 0:
      raise ValueError(
          f'config.data.{field}={config_data[field]} is negative:'
          ' set it to 0 for none')
    if (config_data[field] or 0) > config_data.image_size:
      raise ValueError(
          f'config.data.{field}={config_data[field]} must be at most'
          f' image_size={config_data.image_size}: a crop could miss the image')
  if config_data.crop_padding and config_data.resized_crop:
    raise ValueError(
        f'config.data.crop_padding={config_data.crop_padding} and'
        f' resized_crop={config_data.resized_crop} are alternative crops: set'
        ' one of them to 0')
  if config_data.repeats < 1:
    raise ValueError(
        f'config.data.repeats={config_data.repeats} must be at least 1:'
        ' set it to 1 for batches of distinct images')
  rand_augment = config_data.rand_augment
  for field, low, high in (
      ('magnitude', 0, 10), ('std', 0, 10), ('layers', 1, 10)):
    if not low <= rand_augment[field] <= high:
      raise ValueError(
          f'config.data.rand_augment.{field}={rand_augment[field]} must be in'
          f' {low}..{high}')
  for field, low, high in (
      ('resized_crop', 0, 1), ('policy_resized_crop', 0, 1),
      ('label_smoothing', 0, 1), ('erasing', 0, 1), ('color_jitter', 0, 10),
      # Beta(1e6, 1e6) is already nearly constant at 1/2; sampling overflows
      # far above it.
      ('mixup', 0, 1e6), ('cutmix', 0, 1e6),
  ):
    if not low <= (config_data[field] or 0) <= high:
      raise ValueError(
          f'config.data.{field}={config_data[field]} must be in'
          f' {low}..{high} (0 = off)')


def check_regression(config_data) -> None:
  """Raises ValueError for augmentations that invalidate regression labels.

  A flipped, stretched or turned image shows another angle than its label, a
  blend of two images shows no single angle, and label smoothing is for classes.
  """
  if config_data.rand_augment.magnitude:
    raise ValueError(
        f'config.data.rand_augment.magnitude='
        f'{config_data.rand_augment.magnitude} is for classification, but'
        f' {config_data.name!r} is a regression: set it to 0')
  for field, off in (
      ('flip', False), ('resized_crop', 0), ('mixup', 0), ('cutmix', 0),
      ('label_smoothing', 0),
  ):
    if config_data[field]:
      raise ValueError(
          f'config.data.{field}={config_data[field]} is for classification, but'
          f' {config_data.name!r} is a regression: set it to {off}')
