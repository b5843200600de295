"""scikit-learn's 1797 handwritten digits of 8x8 pixels; needs no download."""

import functools

import numpy as np

from adavit_jax.data import data_config as config_lib
from adavit_jax.data import decode
from adavit_jax.data import splits

CLASS_NAMES = tuple('0123456789')
NUM_TEST = 500


@functools.lru_cache(maxsize=1)
def real_digits() -> tuple[np.ndarray, np.ndarray]:
  """Returns images uint8 [1797, 8, 8] and labels int32 [1797]."""
  # Imported here because it takes a second and other sources do not need it.
  from sklearn import datasets

  data = datasets.load_digits()
  images = np.rint(data.images * (255 / 16)).astype(np.uint8)
  return images, data.target.astype(np.int32)


def digit_rows(*, holdout: float, seed: int) -> dict[str, np.ndarray]:
  """Splits the real digits, stratified by class, into train, holdout and test.

  Args:
    holdout: fraction of the 1297 digits outside the test split to hold out.
    seed: seed of the held-out digits; the test split is fixed.

  Returns:
    Sorted int64 indices into `real_digits` for 'train', 'holdout' and 'test'.
  """
  _, labels = real_digits()
  rest, test = splits.stratified_split(labels, NUM_TEST, seed=0)
  train, held = splits.stratified_split(
      labels[rest], round(holdout * len(rest)), seed=seed)
  return dict(train=rest[train], holdout=rest[held], test=test)


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the digits: 1297 for train and holdout, 500 for test."""
  images, labels = real_digits()
  images = decode.fit_arrays(
      images, config_lib.load_size(config_data),
      config_lib.interpolation(config_data))
  parts = {
      name: splits.ArraySplit(images[rows], labels[rows])
      for name, rows in digit_rows(
          holdout=config_data.holdout, seed=seed
      ).items()
  }
  mean, std = splits.channel_stats(parts['train'])
  return splits.Dataset(
      **parts, num_classes=10, class_names=CLASS_NAMES, channels=1,
      image_size=config_data.image_size, mean=mean, std=std)
