"""Augmentation against NumPy references."""

import functools
import importlib

import jax
import numpy as np
import pytest

from adavit_jax import data
from adavit_jax.data import color
from adavit_jax.data import erasing
from adavit_jax.data import mixing
from adavit_jax.data import rand_augment
from adavit_jax.data.augment import random_crop
from adavit_jax.data.augment import random_flip
from adavit_jax.data.augment import resized_crop
from adavit_jax.data.mixing import cutmix_maps

B, S, K = 14, 8, 5  # Neighbors differ in class, the last and first too.
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
RNG = np.random.default_rng(0)
# No zero, so that padding can be told from the image.
IMAGES = RNG.integers(1, 256, (B, S, S, 3), dtype=np.uint8)
LABELS = np.arange(B) % K
# Each image a constant of its own, so that a blend shows its weights.
FLAT = np.broadcast_to(
    np.arange(10, 10 * B + 1, 10, dtype=np.uint8)[:, None, None, None],
    (B, S, S, 1),
)


def augment(seed=0, images=IMAGES, image_size=S, **fields):
  config = data.default_config()
  config.update(fields)
  channels = images.shape[-1]
  function = jax.jit(functools.partial(
      data.augment, config_data=config, num_classes=K, mean=MEAN[:channels],
      std=STD[:channels], image_size=image_size,
  ))
  out, targets = function(jax.random.key(seed), images, LABELS)
  assert out.dtype == targets.dtype == np.float32
  return np.asarray(out), np.asarray(targets)


def normalized(images):
  channels = images.shape[-1]
  return (images / 255 - MEAN[:channels]) / STD[:channels]


def gray_levels(images):
  """Undoes the normalization."""
  channels = images.shape[-1]
  return (images * STD[:channels] + MEAN[:channels]) * 255


def crops_of(image, size, padding):
  """Returns every crop, by its corner."""
  padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
  room = len(padded) - size + 1
  return {
      (top, left): padded[top:top + size, left:left + size]
      for top in range(room) for left in range(room)
  }


def corners(cropped, images, *, size, padding):
  """Returns where each crop was taken, or fails."""
  found = []
  for crop, image in zip(np.asarray(cropped), images):
    found.append(next(
        corner for corner, candidate in crops_of(image, size, padding).items()
        if (candidate == crop).all()
    ))
  return np.array(found)


def test_identity_when_everything_is_off():
  out, targets = augment()
  np.testing.assert_allclose(out, normalized(IMAGES), atol=1e-5)
  np.testing.assert_array_equal(targets, np.eye(K)[LABELS])


def test_only_what_is_on_is_traced():
  def program(**fields):
    config = data.default_config()
    config.update(fields)
    return str(jax.make_jaxpr(functools.partial(
        data.augment, config_data=config, num_classes=K, mean=MEAN, std=STD,
        image_size=S,
    ))(jax.random.key(0), IMAGES, LABELS))

  off = program()
  assert 'random_bits' not in off and 'pad' not in off and 'rev' not in off
  assert 'rev' in program(flip=True) and 'pad' not in program(flip=True)
  assert 'random_bits' in program(crop_padding=1)


def test_every_augmentation_has_a_key_of_its_own(monkeypatch):
  keys = []
  # `data.augment` is the function.
  here = importlib.import_module('adavit_jax.data.augment')
  for module, name in (
      (here, 'resized_crop'), (here, 'random_flip'),
      (color, 'color_jitter'), (rand_augment, 'rand_augment'),
      (erasing, 'erase'), (mixing, 'mix')):
    def run(key, images, *targets, name=name, **_):
      keys.append((name, tuple(jax.random.key_data(key).tolist())))
      return (images, *targets[:1]) if name == 'mix' else images
    monkeypatch.setattr(module, name, run)
  config = data.default_config()
  config.update(dict(resized_crop=0.5, flip=True, color_jitter=0.1,
                     erasing=0.5, mixup=0.5))
  config.rand_augment.magnitude = 9.
  data.augment(
      jax.random.key(0), IMAGES, LABELS, config_data=config, num_classes=K,
      mean=MEAN, std=STD, image_size=S)
  assert len(keys) == len({key for _, key in keys}) == 6


@pytest.mark.parametrize('size, padding', [(8, 2), (5, 0), (6, 1)])
def test_crops_are_crops_and_reach_every_corner(size, padding):
  images = np.concatenate([IMAGES] * 8)
  cropped = jax.jit(functools.partial(
      random_crop, size=size, padding=padding))(jax.random.key(1), images)
  assert cropped.dtype == np.uint8
  found = corners(cropped, images, size=size, padding=padding)
  room = S + 2 * padding - size
  np.testing.assert_array_equal(found.min(0), [0, 0])
  np.testing.assert_array_equal(found.max(0), [room, room])
  assert (found[:, 0] != found[:, 1]).any()


def test_flip_mirrors_some_and_leaves_the_crop_alone():
  plain, _ = augment(crop_padding=2)
  flipped, _ = augment(crop_padding=2, flip=True)
  same = (plain == flipped).all((1, 2, 3))
  mirrored = (plain[:, :, ::-1] == flipped).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 0 < mirrored.sum() < B


def test_every_other_image_is_mirrored():
  images = np.tile(np.float32([0, 1]).reshape(1, 1, 2, 1), (400, 1, 1, 1))
  mirrored = np.asarray(
      jax.jit(random_flip)(jax.random.key(0), images))[:, 0, 0, 0]
  assert abs(mirrored.mean() - 0.5) < 0.1


def test_resized_crop_of_the_whole_area_is_the_image():
  out, _ = augment(resized_crop=1.0)
  np.testing.assert_allclose(out, normalized(IMAGES), atol=1e-4)


@pytest.mark.parametrize('height, width', [(32, 32), (24, 40)])
def test_resized_crop_keeps_area_aspect_and_place(height, width):
  # Coordinates as pixels: enlarging keeps them linear, away from the image's
  # edge, so slope and offset tell the rectangle.
  rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
  ramp = np.stack([rows, columns], -1)
  images = np.broadcast_to(ramp, (64, *ramp.shape))
  out = np.asarray(jax.jit(functools.partial(
      resized_crop, size=48, min_area=0.25))(jax.random.key(0), images))
  lines = np.stack([out[:, 8:40, 24, 0], out[:, 24, 8:40, 1]])  # [2, 64, 32]
  slope = np.diff(lines).mean(-1)
  np.testing.assert_allclose(
      lines, lines[..., :1] + slope[..., None] * np.arange(32), atol=1e-3
  )
  extent = 48 * slope
  # The center of pixel 8 lies 8.5 slopes from the rectangle's edge.
  edge = lines[..., 0] - 8.5 * slope
  assert edge.min() > -0.01
  sides = np.array([[height], [width]])
  assert (edge + extent < sides + 0.01).all()
  share = extent / sides
  area, aspect = share.prod(0), share[1] / share[0]
  assert 0.249 < area.min() < 0.4 and 0.8 < area.max() < 1.001
  assert 0.749 < aspect.min() < 0.85 and 1.15 < aspect.max() < 1.334


def test_resized_crop_shrinks_to_the_mean():
  board = np.float32(np.indices((24, 24)).sum(0) % 2)[None, ..., None]
  out = jax.jit(functools.partial(resized_crop, size=8, min_area=1.0))(
      jax.random.key(0), board)
  np.testing.assert_allclose(out, 0.5, atol=0.02)


def test_mixup_blends_images_and_targets_alike():
  out, targets = augment(images=FLAT, mixup=1.0)
  weight = targets[np.arange(B), LABELS]
  assert weight.std() > 0.1
  np.testing.assert_allclose(
      targets,
      weight[:, None] * np.eye(K)[LABELS]
      + (1 - weight[:, None]) * np.eye(K)[np.roll(LABELS, 1)],
      atol=1e-6,
  )
  weight = weight[:, None, None, None]
  expected = weight * FLAT + (1 - weight) * np.roll(FLAT, 1, axis=0)
  np.testing.assert_allclose(gray_levels(out), expected, atol=1e-3)


def test_cutmix_pastes_rectangles_and_counts_them():
  out, targets = augment(images=FLAT, cutmix=1.0)
  levels = gray_levels(out)[..., 0]
  own = np.abs(levels - FLAT[..., 0]) < 1e-2
  partner = np.abs(levels - np.roll(FLAT, 1, axis=0)[..., 0]) < 1e-2
  assert (own ^ partner).all()
  assert 0.2 < own.mean() < 0.95 and (partner.sum((1, 2)) > 0).sum() > B // 2
  for image in partner:
    # A rectangle is the product of its shadows.
    np.testing.assert_array_equal(image, np.outer(image.any(1), image.any(0)))
  np.testing.assert_allclose(
      targets[np.arange(B), LABELS], own.mean((1, 2)), atol=1e-6
  )
  np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


def test_cutmix_rectangles_have_the_area_and_the_aspect_asked_for():
  # So large an alpha draws a half; the image's edge cuts most of them.
  maps = jax.jit(functools.partial(
      cutmix_maps, alpha=1e4, shape=(256, 16, 32)))(jax.random.key(0))
  box = np.asarray(maps) == 0
  sides = [box.any(axis).sum(1).max() for axis in (2, 1)]
  np.testing.assert_allclose(sides, np.sqrt(0.5) * np.array([16, 32]), atol=1)


def test_a_coin_chooses_between_mixup_and_cutmix_for_the_batch():
  config = data.default_config()
  config.update(dict(mixup=1.0, cutmix=1.0, label_smoothing=0.1))
  function = jax.jit(lambda key: data.augment(
      key, FLAT, LABELS, config_data=config, num_classes=K, mean=MEAN[:1],
      std=STD[:1], image_size=S,
  ))
  kinds = set()
  for seed in range(12):
    out, targets = jax.device_get(function(jax.random.key(seed)))
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert targets.min() >= 0.1 / K - 1e-6
    levels = gray_levels(np.asarray(out))[..., 0]
    pure = (np.abs(levels - FLAT[..., 0]) < 1e-2) | (
        np.abs(levels - np.roll(FLAT, 1, axis=0)[..., 0]) < 1e-2
    )
    constant = np.ptp(levels, axis=(1, 2)) < 1e-2
    assert pure.all() or constant.all()
    kinds.add('cutmix' if pure.all() else 'mixup')
  assert kinds == {'mixup', 'cutmix'}


def test_no_image_is_mixed_with_its_repeats():
  """Adjacent rows are one image under crops and weights of their own."""
  images, labels = (np.repeat(x[:4], 3, axis=0) for x in (IMAGES, LABELS))
  config = data.default_config()
  config.update(dict(mixup=1.0, repeats=3, crop_padding=2))
  out, targets = jax.device_get(jax.jit(functools.partial(
      data.augment, config_data=config, num_classes=K, mean=MEAN, std=STD,
      image_size=S))(jax.random.key(0), images, labels))
  assert len(np.unique(out, axis=0)) == 12
  others = np.eye(K)[np.roll(labels, 3)]
  weight = ((targets - others) / (np.eye(K)[labels] - others + 1e-9)).max(1)
  assert len(set(np.round(weight, 6))) == 12
  np.testing.assert_allclose(
      targets, weight[:, None] * np.eye(K)[labels]
      + (1 - weight[:, None]) * others, atol=1e-6)


def test_label_smoothing():
  _, targets = augment(label_smoothing=0.1)
  np.testing.assert_allclose(
      targets, 0.9 * np.eye(K)[LABELS] + 0.1 / K, atol=1e-6
  )


def test_the_key_decides_everything():
  fields = dict(crop_padding=2, flip=True)
  first, _ = augment(3, **fields)
  again, _ = augment(3, **fields)
  other, _ = augment(4, **fields)
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_normalize_crops_the_center():
  out = data.normalize(IMAGES, MEAN, STD, 5)
  np.testing.assert_allclose(
      out, normalized(IMAGES[:, 1:6, 1:6]), atol=1e-5
  )
  with pytest.raises(ValueError, match='image_size=9'):
    data.normalize(IMAGES, MEAN, STD, 9)


@pytest.mark.parametrize('images, fields, message', [
    (IMAGES.astype(np.float32), {}, 'images.*float32'),
    (IMAGES[0], {}, 'images.*uint8'),
    (IMAGES, dict(image_size=13, crop_padding=2), 'load_size'),
    (IMAGES, dict(crop_padding=2, resized_crop=0.5), 'data.crop_padding=2'),
    (IMAGES, dict(cutmix=-1.0), 'cutmix=-1.0'),
])
def test_bad_input_is_refused(images, fields, message):
  size = fields.get('image_size', S)
  config = data.default_config()
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    data.augment(
        jax.random.key(0), images, LABELS, config_data=config, num_classes=K,
        mean=MEAN, std=STD, image_size=size,
    )


def test_images_that_were_cropped_on_reading_are_not_cropped_again():
  config = data.default_config()
  config.update(dict(resized_crop=0.1, image_size=S))
  function = functools.partial(
      data.augment, config_data=config, num_classes=K, mean=MEAN, std=STD,
      cropped=True)
  out, _ = function(jax.random.key(0), IMAGES, LABELS, image_size=S)
  np.testing.assert_allclose(out, normalized(IMAGES), atol=1e-5)
  with pytest.raises(ValueError, match='image_size=9'):
    function(jax.random.key(0), IMAGES, LABELS, image_size=9)
  split = data.ArraySplit(IMAGES, LABELS)
  assert data.crop_on_reading(split, config) is None
  split.lazy = True  # but a user's, which cannot crop
  assert data.crop_on_reading(split, config) is None
  split.crops = lambda indices, crop, seeds: None
  assert data.crop_on_reading(split, config) == (S, 0.1)
  config.resized_crop = 0.
  assert data.crop_on_reading(split, config) is None
