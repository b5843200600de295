"""Loads the `Dataset` of a `config.data`."""

from adavit_jax.data import data_config as config_lib
from adavit_jax.data import digit_scenes
from adavit_jax.data import digits
from adavit_jax.data import folder
from adavit_jax.data import packed
from adavit_jax.data import rotated_digits
from adavit_jax.data import splits
from adavit_jax.data import tfds

_SOURCES = {
    'digits': digits.load,
    'digit_scenes': digit_scenes.load,
    'folder': folder.load,
    'packed': packed.load,
    'rotated_digits': rotated_digits.load,
}


def load(config_data, *, seed: int = 0) -> splits.Dataset:
  """Loads the dataset of `config.data`, from the cache if possible.

  Args:
    config_data: `config.data`, see `default_config`.
    seed: seed of the held-out images and of composed images if
      `config_data.seed` is None. The test split does not depend on it.

  Raises:
    ValueError: if a field of the config or the data is invalid; the message
      names it and the fix.
  """
  config_lib.check_source(config_data)
  config_lib.check_augmentation(config_data)
  source = _SOURCES.get(config_data.name, tfds.load)
  if config_data.seed is not None:
    seed = config_data.seed
  if seed < 0:
    raise ValueError(f'seed={seed} must be at least 0: set config.data.seed or'
                     ' config.seed')
  dataset = source(config_data, seed=seed)
  if not len(dataset.train) or not len(dataset.test):
    raise ValueError(
        f'config.data.name={config_data.name!r} has {len(dataset.train)}'
        f' training and {len(dataset.test)} test images: both are needed')
  return dataset
