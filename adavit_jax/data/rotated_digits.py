"""Real digits turned by a random angle: a regression that needs no download.

The label is the angle. It shows in the digit's shape, roughly, as people write
at different slants, and in the edges of the original's 8x8 pixels. Noise of a
strength of its own makes each image easier or harder.
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
    members: int64 [n], which of the digits given is shown.
  """

  images: np.ndarray
  angles: np.ndarray
  members: np.ndarray


def rotate(
    images: np.ndarray, *, count: int, size: int, noise: float,
    rng: np.random.Generator, interpolation: str = 'bicubic'
) -> Rotations:
  """Draws digits and angles, all equally likely.

  Args:
    images: uint8 [m, h, w], the digits to draw from.
    count: n, the number of rotated digits.
    size: S, pixels a side of the result.
    noise: largest deviation of an image's noise, white is 1; all up to it are
      equally likely.
    rng: decides everything.
    interpolation: 'bicubic' or 'bilinear', of the digit as it is resized and
      turned.

  Raises:
    ValueError: there is no digit.
  """
  if not len(images):
    raise ValueError('There is no digit to rotate: raise config.data.holdout.')
  # The digit takes three quarters of a side, so that its corners, which are
  # mostly black, stay on the canvas but for a pixel.
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

  The share `config.data.holdout` of the digits outside the test split is held
  out, and as large a share of `num_train` images drawn from them. The training
  images and the held out ones depend on `seed`; the test images do not.

  Raises:
    ValueError: too few images are asked for, or too few digits held out.
  """
  rotations = config_data.rotations
  for field in ('num_train', 'num_test'):
    if rotations[field] < 2:
      raise ValueError(
          f'config.data.rotations.{field}={rotations[field]} must be at least'
          ' 2.'
      )
  if not 0 <= rotations.noise <= 1:
    raise ValueError(f'config.data.rotations.noise={rotations.noise} must lie'
                     ' in 0..1: white is 1.')
  counts = dict(
      train=rotations.num_train,
      holdout=round(rotations.num_train * config_data.holdout),
      test=rotations.num_test,
  )
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
          float(angles.mean()), float(angles.std()), 'degrees'
      ),
  )


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
    found = rotate(
        digits.real_digits()[0][rows], count=count, size=size, noise=noise,
        rng=np.random.default_rng((seed, stream)), interpolation=interpolation,
    )
    records['image'], records['label'] = found.images, found.angles
    return records

  if not count:
    return splits.ArraySplit(
        np.empty((0, size, size, 1), np.uint8), np.empty(0, np.float32)
    )
  records = cache.cached(
      config_data.cache_dir, f'rotations-{name}',
      dict(
          source='rotated_digits', split=name, count=count, size=size,
          noise=noise, holdout=holdout, seed=seed, interpolation=interpolation,
      ), build,
  )
  return splits.ArraySplit(
      np.array(records['image'])[..., None], np.array(records['label'])
  )
