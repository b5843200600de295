"""The `config.data` fields: their defaults and their limits."""

import math

import ml_collections
from ml_collections import config_dict

SOURCES = ('digits', 'digit_scenes', 'rotated_digits', 'folder', 'tfds:NAME')
INTERPOLATIONS = ('bicubic', 'bilinear')
# What belongs to a model's parameters: they expect images prepared like this.
PREPROCESSING = ('mean', 'std', 'interpolation', 'crop')


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.data` for scikit-learn's digits, all augmentation off."""
  return ml_collections.ConfigDict(dict(
      name='digits',  # one of `SOURCES`
      data_dir='',  # folder: holds train/ and test/ or val/; tfds: its data_dir
      cache_dir='',  # '' = $ADAVIT_CACHE, else ~/.cache/adavit_jax
      image_size=8,  # pixels a side that the model is fed
      load_size=0,  # pixels a side that images are decoded to; 0 = by crop
      # None: as the weights or the run that training starts from, if any.
      mean=config_dict.placeholder(tuple),  # in 0..1; else the data's own
      std=config_dict.placeholder(tuple),  # in 0..1; else the data's own
      interpolation=config_dict.placeholder(str),  # else bicubic
      crop=config_dict.placeholder(float),  # image_size / load_size; else 1
      holdout=0.1,  # share of the training split for calibration and choice
      # Decides which images are held out, and how composed ones look; None: the
      # run's seed. A run that begins from another one holds out the same.
      seed=config_dict.placeholder(int),
      on_corrupt='error',  # 'error' | 'skip'
      scenes=dict(kind='mix', num_train=30_000, num_test=4_000),
      rotations=dict(num_train=20_000, num_test=2_000, noise=0.5),
      crop_padding=0,  # zero pixels around the image before the random crop
      # The same where a policy decides; None: as before. It would decide on
      # borders that inference never shows.
      policy_crop_padding=config_dict.placeholder(int),
      flip=False,  # mirror half of the images left to right
      resized_crop=0.0,  # smallest share of the area kept; 0 = off
      mixup=0.0,  # alpha of Beta(alpha, alpha); 0 = off
      cutmix=0.0,  # alpha of Beta(alpha, alpha); 0 = off
      label_smoothing=0.0,
  ))


def load_size(config_data) -> int:
  """Returns the pixels a side that images are decoded to."""
  if config_data.load_size:
    return config_data.load_size
  return math.floor(config_data.image_size / (config_data.crop or 1))


def interpolation(config_data) -> str:
  """Returns how images are resized, one of `INTERPOLATIONS`."""
  return config_data.interpolation or INTERPOLATIONS[0]


def check_source(config_data) -> None:
  """Raises ValueError for a field of the data source that cannot work."""
  name = config_data.name
  if name not in SOURCES[:-1] and not (
      name.startswith('tfds:') and len(name) > len('tfds:')
  ):
    raise ValueError(f'config.data.name={name!r}: give one of {SOURCES}.')
  if config_data.image_size < 1:
    raise ValueError(
        f'config.data.image_size={config_data.image_size} must be at least 1.'
    )
  _check_preprocessing(config_data)
  if load_size(config_data) < config_data.image_size:
    raise ValueError(
        f'config.data.load_size={config_data.load_size} is smaller than'
        f' image_size={config_data.image_size}: give at least image_size, or 0'
        ' for the same.'
    )
  if not 0 <= config_data.holdout <= 0.5:
    raise ValueError(
        f'config.data.holdout={config_data.holdout} must lie in 0..0.5: it is'
        ' the share of the training split that is kept out.'
    )
  if config_data.on_corrupt not in ('error', 'skip'):
    raise ValueError(
        f"config.data.on_corrupt={config_data.on_corrupt!r}: give 'error' or"
        " 'skip'."
    )


def _check_preprocessing(config_data) -> None:
  if config_data.interpolation not in (None, *INTERPOLATIONS):
    raise ValueError(
        f'config.data.interpolation={config_data.interpolation!r}: give one of'
        f' {INTERPOLATIONS}.'
    )
  crop = config_data.crop
  if crop is not None and not 0 < crop <= 1:
    raise ValueError(
        f'config.data.crop={crop} must lie in 0..1: it is the share of the'
        " short side that the model's image takes."
    )
  if crop is not None and config_data.load_size:
    raise ValueError(
        f'config.data.crop={crop} and load_size={config_data.load_size} both'
        ' say how large images are decoded: set load_size=0, or no crop.'
    )
  for field, low in (('mean', 0), ('std', 1 / 512)):
    values = config_data[field]
    if values is not None and not all(low <= x <= 1 for x in values):
      raise ValueError(
          f'config.data.{field}={tuple(values)} must lie in {low:.3g}..1: white'
          ' is 1.'
      )


def check_augmentation(config_data) -> None:
  """Raises ValueError for an augmentation field out of its range."""
  for field in ('crop_padding', 'policy_crop_padding'):
    if (config_data[field] or 0) < 0:
      raise ValueError(
          f'config.data.{field}={config_data[field]} is negative:'
          ' give 0 for none.'
      )
    if config_data[field] and config_data.resized_crop:
      raise ValueError(
          f'config.data.{field}={config_data[field]} and'
          f' resized_crop={config_data.resized_crop} are both on: they are two'
          ' kinds of crop, set one of them to 0.'
      )
  for field, low, high in (
      ('resized_crop', 0, 1), ('label_smoothing', 0, 1),
      # Beta(1e6, 1e6) blends evenly; far above it overflows.
      ('mixup', 0, 1e6), ('cutmix', 0, 1e6),
  ):
    if not low <= config_data[field] <= high:
      raise ValueError(
          f'config.data.{field}={config_data[field]} must lie in'
          f' {low}..{high} (0 = off).'
      )


def check_regression(config_data) -> None:
  """Raises ValueError for what changes or mixes the meaning of a number.

  A mirrored or stretched image has another angle than its label says, two
  images' blend has none, and label smoothing is for classes.
  """
  for field, off in (
      ('flip', False), ('resized_crop', 0), ('mixup', 0), ('cutmix', 0),
      ('label_smoothing', 0),
  ):
    if config_data[field]:
      raise ValueError(
          f'config.data.{field}={config_data[field]} is for classification, and'
          f' the labels of {config_data.name!r} are numbers: set it to {off}.'
      )
