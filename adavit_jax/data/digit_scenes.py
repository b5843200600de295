"""Scenes of real digits on 16x16 pixels: half of them easy, half hard.

An easy scene shows one large digit. A hard scene shows two or three small
digits; its label is the brightest ('mix') or the largest in value ('max').
These are the two cases of the patent's figure 5, one large object and one
object among others, and need no download.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from adavit_jax.data import cache
from adavit_jax.data import data_config as config_lib
from adavit_jax.data import decode
from adavit_jax.data import digits
from adavit_jax.data import splits

CANVAS = 16  # pixels a side
KINDS = ('mix', 'max')
_DIGIT = 8  # pixels a side of a real digit
_NOISE = 0.04  # standard deviation; white is 1
_MAX_OVERLAP = 8  # of 64 pixels that the squares of two digits may share


class Scenes(NamedTuple):
  """n scenes.

  Attributes:
    images: uint8 [n, 16, 16].
    labels: int32 [n].
    hard: bool [n], whether a scene shows more than one digit.
    members: int32 [n, 3], indices of the real digits shown, the labeled one
      first, padded with -1.
  """

  images: np.ndarray
  labels: np.ndarray
  hard: np.ndarray
  members: np.ndarray


def compose(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    count: int,
    kind: str,
    rng: np.random.Generator,
) -> Scenes:
  """Composes scenes; labels are uniform in easy and in hard scenes.

  Args:
    images: uint8 [n, 8, 8], the digits to draw from.
    labels: int [n] in 0..9, with every class present.
    count: number of scenes.
    kind: label of a hard scene: 'mix', the brightest digit; 'max', the largest.
    rng: NumPy random generator.

  Raises:
    ValueError: if a class has no digit.
  """
  by_class = [np.flatnonzero(labels == label) for label in range(10)]
  if missing := [c for c, rows in enumerate(by_class) if not len(rows)]:
    raise ValueError(
        f'there is no digit of the classes {missing} to compose scenes from:'
        ' raise config.data.holdout')
  scenes = Scenes(
      np.empty((count, CANVAS, CANVAS), np.uint8),
      rng.integers(10, size=count).astype(np.int32),
      rng.random(count) < 0.5,
      np.full((count, 3), -1, np.int32))
  for i, (label, hard) in enumerate(zip(scenes.labels, scenes.hard)):
    digits = (_hard_digits(by_class, label, kind, rng) if hard
              else _easy_digit(by_class, label, rng))
    scenes.images[i] = _draw(images, digits, rng)
    scenes.members[i, :len(digits.members)] = digits.members
  return scenes


class _Digits(NamedTuple):
  """The digits of a scene, the one that it is named after first.

  Attributes:
    members: indices of the digits.
    levels: brightness of each digit; more than there are digits.
    size: side of every digit in pixels.
    corners: (top, left) of each digit.
  """
  members: list[int]
  levels: np.ndarray
  size: int
  corners: np.ndarray


def _easy_digit(by_class, label, rng):
  """Chooses one large digit: `_Digits`."""
  members = [rng.choice(by_class[label])]
  levels = rng.uniform(0.85, 1.0, 3)
  size = rng.integers(12, CANVAS + 1)
  corners = rng.integers(CANVAS - size + 1, size=(1, 2))
  return _Digits(members, levels, size, corners)


def _hard_digits(by_class, label, kind, rng):
  """Chooses two or three small digits: `_Digits`."""
  members = [rng.choice(by_class[label])]
  levels = rng.uniform(0.85, 1.0, 3)
  others = rng.integers(1, 3)
  # In 'max' the other digits may equal the label but not exceed it.
  highest = 10 if kind == 'mix' else label + 1
  members += [
      rng.choice(by_class[c]) for c in rng.integers(highest, size=others)]
  if kind == 'mix':
    levels[1:] = rng.uniform(0.4, 0.7, 2)
  return _Digits(members, levels, _DIGIT, _corners(len(members), rng))


def _draw(images, digits, rng):
  """Draws a scene with noise: uint8 values as float64 [CANVAS, CANVAS]."""
  canvas = np.zeros((CANVAS, CANVAS))
  size = digits.size
  for member, level, (top, left) in zip(
      digits.members, digits.levels, digits.corners):
    window = canvas[top:top + size, left:left + size]
    np.maximum(window, level * _resized(images[member], size), out=window)
  canvas += rng.normal(0, _NOISE * 255, canvas.shape)
  return np.rint(np.clip(canvas, 0, 255))


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns scenes whose splits share no real digit.

  Training and held-out scenes depend on `seed`, test scenes do not. There are
  half as many held-out scenes as test scenes.
  """
  scenes = config_data.scenes
  if scenes.kind not in KINDS:
    raise ValueError(
        f'config.data.scenes.kind={scenes.kind!r} must be one of {KINDS}')
  for field in ('num_train', 'num_test'):
    config_lib.check_count(f'scenes.{field}', scenes[field])
  counts = dict(
      train=scenes.num_train,
      holdout=scenes.num_test // 2 if config_data.holdout else 0,
      test=scenes.num_test)
  parts = {
      name: _load_split(config_data, name, count, seed=seed)
      for name, count in counts.items()
  }
  mean, std = splits.channel_stats(parts['train'])
  return splits.Dataset(
      **parts, num_classes=10, class_names=digits.CLASS_NAMES, channels=1,
      image_size=config_data.image_size, mean=mean, std=std)


def _load_split(
    config_data, name: str, count: int, *, seed: int
) -> splits.ArraySplit:
  kind, holdout = config_data.scenes.kind, config_data.holdout
  if name == 'test':
    seed = holdout = 0

  def build():
    records = np.empty(count, [
        ('image', 'u1', (CANVAS, CANVAS)), ('label', '<i4'), ('hard', '?'),
    ])
    images, labels = digits.real_digits()
    rows = digits.digit_rows(holdout=holdout, seed=seed)[name]
    stream = ('train', 'holdout', 'test').index(name)
    scenes = compose(
        images[rows], labels[rows], count=count, kind=kind,
        rng=np.random.default_rng((seed, stream, KINDS.index(kind))))
    records['image'], records['label'] = scenes.images, scenes.labels
    records['hard'] = scenes.hard
    return records

  size = config_lib.load_size(config_data)
  if not count:
    return splits.ArraySplit(
        np.empty((0, size, size, 1), np.uint8), np.empty(0, np.int32),
        dict(hard=np.empty(0, bool)))
  records = cache.cached(
      config_data.cache_dir, f'scenes-{kind}-{name}',
      dict(
          source='digit_scenes', split=name, kind=kind, count=count,
          holdout=holdout, seed=seed,
      ), build)
  images = decode.fit_arrays(
      np.array(records['image']), size, config_lib.interpolation(config_data))
  return splits.ArraySplit(
      images, records['label'], dict(hard=np.array(records['hard'])))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
  if size == len(image):
    return image
  resized = Image.fromarray(image).resize(
      (size, size), Image.Resampling.BILINEAR)
  return np.asarray(resized)


def _corners(count: int, rng: np.random.Generator) -> np.ndarray:
  """Places 8x8 squares with little overlap: int [count, (top, left)]."""
  for _ in range(20):
    corners = rng.integers(CANVAS - _DIGIT + 1, size=(count, 2))
    apart = np.abs(corners[:, None] - corners[None])
    shared = np.maximum(_DIGIT - apart, 0).prod(-1)
    if shared[np.triu_indices(count, 1)].max() <= _MAX_OVERLAP:
      return corners
  return _DIGIT * np.stack(np.divmod(rng.permutation(4)[:count], 2), -1)
