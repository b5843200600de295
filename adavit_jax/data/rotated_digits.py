"""Real digits rotated by a random angle: a regression without a download.

The label is the angle. It can be read roughly from the shape of the digit,
since people write at different slants, and from the edges of the original 8x8
pixels. Each image has noise of a random strength, which makes it easier or
harder.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from adavit_jax.data import cache
from adavit_jax.data import data_config as config_lib
from adavit_jax.data import digits
from adavit_jax.data import splits

MAX_ANGLE = 45  # degrees


class Rotations(NamedTuple):
  """n rotated digits.

  Attributes:
    images: uint8 [n, S, S].
    angles: float32 [n], degrees counter-clockwise in -45..45.
    members: int64 [n], indices of the digits shown.
  """

  images: np.ndarray
  angles: np.ndarray
  members: np.ndarray


def rotate(
    images: np.ndarray, *, count: int, size: int, noise: float,
    rng: np.random.Generator, interpolation: str = 'bicubic'
) -> Rotations:
  """Rotates random digits by random angles, both uniform.

  Args:
    images: uint8 [m, h, w], the digits to draw from.
    count: n, number of rotated digits.
    size: S, output side in pixels.
    noise: largest standard deviation of the noise, white is 1; that of each
      image is uniform in 0..noise.
    rng: NumPy random generator.
    interpolation: 'bicubic' or 'bilinear', for resizing and rotation.

  Raises:
    ValueError: if there is no digit.
  """
  if not len(images):
    raise ValueError('there is no digit to rotate: raise config.data.holdout')
  # The digit takes 3/4 of the side, so that rotation cuts off at most one pixel
  # of its corners, which are mostly black.
  resampling = Image.Resampling[interpolation.upper()]
  margin = round(size / 8)
  side = size - 2 * margin
  upright = []
  for image in images:
    canvas = Image.new('L', (size, size))
    digit = Image.fromarray(image)
    canvas.paste(digit.resize((side, side), resampling), (margin, margin))
    upright.append(canvas)
  members = rng.integers(len(images), size=count)
  angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, count).astype(np.float32)
  rotated = np.empty((count, size, size), np.uint8)
  for row, (member, angle) in enumerate(zip(members, angles.tolist())):
    rotated[row] = upright[member].rotate(angle, resampling)
  strength = rng.uniform(0, 255 * noise, (count, 1, 1)).astype(np.float32)
  added = strength * rng.standard_normal(rotated.shape, np.float32)
  rotated = np.clip(np.rint(rotated + added), 0, 255).astype(np.uint8)
  return Rotations(rotated, angles, members)


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns rotated digits whose splits share no real digit.

  The fraction `config.data.holdout` of the digits outside the test split is
  held out; the holdout split has the same fraction of `num_train` images.
  Training and held-out images depend on `seed`, test images do not.

  Raises:
    ValueError: if num_train, num_test or noise is out of range, or no digit is
      held out.
  """
  rotations = config_data.rotations
  for field in ('num_train', 'num_test'):
    config_lib.check_count(f'rotations.{field}', rotations[field])
  if not 0 <= rotations.noise <= 1:
    raise ValueError(f'config.data.rotations.noise={rotations.noise} must be in'
                     ' 0..1: white is 1')
  counts = dict(
      train=rotations.num_train,
      holdout=round(rotations.num_train * config_data.holdout),
      test=rotations.num_test)
  parts = {
      name: _load_split(config_data, name, count, seed=seed)
      for name, count in counts.items()
  }
  mean, std = splits.channel_stats(parts['train'])
  angles = parts['train'].labels.astype(np.float64)
  return splits.Dataset(
      **parts, num_classes=0, class_names=(), channels=1,
      image_size=config_data.image_size, mean=mean, std=std,
      target=splits.Target(
          float(angles.mean()), float(angles.std()), 'degrees'))


def _load_split(
    config_data, name: str, count: int, *, seed: int
) -> splits.ArraySplit:
  size, holdout = config_lib.load_size(config_data), config_data.holdout
  noise = config_data.rotations.noise
  interpolation = config_lib.interpolation(config_data)
  if name == 'test':
    seed = holdout = 0

  def build():
    records = np.empty(count, [('image', 'u1', (size, size)), ('label', '<f4')])
    rows = digits.digit_rows(holdout=holdout, seed=seed)[name]
    stream = ('train', 'holdout', 'test').index(name)
    rotations = rotate(
        digits.real_digits()[0][rows], count=count, size=size, noise=noise,
        rng=np.random.default_rng((seed, stream)), interpolation=interpolation)
    records['image'], records['label'] = rotations.images, rotations.angles
    return records

  if not count:
    return splits.ArraySplit(
        np.empty((0, size, size, 1), np.uint8), np.empty(0, np.float32))
  records = cache.cached(
      config_data.cache_dir, f'rotations-{name}',
      dict(
          source='rotated_digits', split=name, count=count, size=size,
          noise=noise, holdout=holdout, seed=seed, interpolation=interpolation,
      ), build)
  return splits.ArraySplit(
      np.array(records['image'])[..., None], np.array(records['label']))
