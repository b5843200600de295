"""RandAugment, color jitter and random erasing, against Pillow and NumPy."""

import functools
import math

from adavit_jax import data
from adavit_jax.data import color
from adavit_jax.data import erasing
from adavit_jax.data import rand_augment
from adavit_jax.data import warps
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageFilter
from PIL import ImageOps
import pytest
from scipy import ndimage
from scipy import stats

B, H, W = 4, 40, 40  # one shape, so that `apply` is compiled once
FILL = (124, 116, 104)
RNG = np.random.default_rng(0)
# A channel that is not used up to its ends, one that is constant, and noise.
IMAGES = RNG.integers(30, 200, (B, H, W, 3)).astype(np.uint8)
IMAGES[1, ..., 2] = 77
IMAGES[2] = RNG.integers(0, 256, (H, W, 3))
LEVELS = np.float32([0.91, 0.83, 1, 0.6])
SIGNS = np.float32([1, -1, -1, 1])

APPLY = jax.jit(functools.partial(rand_augment.apply, fill=FILL))


def apply(name, images=IMAGES, levels=LEVELS, signs=SIGNS):
  kind = np.full(len(images), rand_augment.OPERATIONS.index(name))
  return np.asarray(APPLY(images, kind, levels, signs))


def posterize(image, level, sign):
  bits = 4 - int(level * 4)
  return ImageOps.posterize(image, bits) if bits else Image.new('RGB', (W, H))


def solarize_add(image, level, sign):
  added = min(128, int(level * 110))
  table = [min(255, v + added) if v < 128 else v for v in range(256)]
  return image.point(table * 3)


def enhance(kind):
  return lambda image, level, sign: kind(image).enhance(
      max(0.1, 1 + sign * level * 0.9))


PILLOW = {
    'identity': lambda image, level, sign: image,
    'auto_contrast': lambda image, level, sign: ImageOps.autocontrast(image),
    'equalize': lambda image, level, sign: ImageOps.equalize(image),
    'invert': lambda image, level, sign: ImageOps.invert(image),
    'posterize': posterize,
    'solarize': lambda image, level, sign: ImageOps.solarize(
        image, 256 - min(256, int(level * 256))),
    'solarize_add': solarize_add,
    'contrast': enhance(ImageEnhance.Contrast),
    'brightness': enhance(ImageEnhance.Brightness),
    'color': enhance(ImageEnhance.Color),
    'sharpness': enhance(ImageEnhance.Sharpness),
}


@pytest.mark.parametrize('name', PILLOW)
def test_colors_are_those_of_pillow(name):
  found = apply(name)
  for image, level, sign, ours in zip(IMAGES, LEVELS, SIGNS, found):
    expected = np.asarray(
        PILLOW[name](Image.fromarray(image), float(level), float(sign)))
    difference = np.abs(ours.astype(int) - expected)
    # Pillow rounds some products of floats down by one.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_the_smooth_image_and_the_mean_gray_are_those_of_pillow():
  for image, smooth, mean in zip(
      IMAGES, *jax.jit(lambda x: (color.smooth(x), color.mean_gray(x)))(
          IMAGES)):
    image = Image.fromarray(image)
    np.testing.assert_array_equal(
        smooth, np.asarray(image.filter(ImageFilter.SMOOTH)))
    assert mean == int(np.asarray(image.convert('L')).mean() + 0.5)


def test_comparisons_give_what_gathers_and_scatters_give():
  tables = RNG.integers(0, 256, (B, 256, 3)).astype(np.uint8)
  expected = np.stack([
      np.stack([table[image[..., c], c] for c in range(3)], -1)
      for image, table in zip(IMAGES, tables)])
  for function in (color.look_up, color.compared):
    np.testing.assert_array_equal(jax.jit(function)(IMAGES, tables), expected)
  expected = np.stack([
      np.stack([np.bincount(image[..., c].ravel(), minlength=256)
                for c in range(3)], -1) for image in IMAGES])
  for function in (color.histograms, color.counted):
    np.testing.assert_array_equal(jax.jit(function)(IMAGES), expected)


def smooth_images(num, size):
  """Images with little detail, on which interpolations agree."""
  noise = np.random.default_rng(3).uniform(0, 255, (num, size, size, 3))
  blurred = ndimage.gaussian_filter(noise, (0, 4, 4, 0))
  return np.clip(127 + 6 * (blurred - 127), 20, 235).astype(np.uint8)


def affine(image, matrix):
  """Pillow's transform: output (x, y) shows the input at matrix (x, y)."""
  return np.asarray(Image.fromarray(image).transform(
      image.shape[1::-1], Image.Transform.AFFINE, matrix,
      resample=Image.Resampling.BICUBIC, fillcolor=FILL), float)


@pytest.mark.parametrize('name', ['shear_x', 'shear_y', 'move_x', 'move_y'])
def test_shears_and_moves_are_those_of_pillow(name):
  size, images = H, smooth_images(B, H)
  for image, level, sign, ours in zip(
      images, LEVELS, SIGNS, apply(name, images)):
    shear, move = sign * level * 0.3, sign * level * 0.45 * size
    expected = affine(image, {
        'shear_x': (1, shear, 0, 0, 1, 0), 'shear_y': (1, 0, 0, shear, 1, 0),
        'move_x': (1, 0, move, 0, 1, 0), 'move_y': (1, 0, 0, 0, 1, move),
    }[name])
    difference = np.abs(ours - expected).max(-1)
    # At the border Pillow does not blend with the fill.
    assert np.median(difference) <= 1 and (difference > 4).mean() < 0.06
    assert np.abs(image - expected).mean() > 10


def test_rotations_are_those_of_pillow():
  images = smooth_images(B, H)
  for image, level, sign, ours in zip(
      images, LEVELS, SIGNS, apply('rotate', images)):
    expected = np.asarray(Image.fromarray(image).rotate(
        sign * level * 30, resample=Image.Resampling.BICUBIC, fillcolor=FILL))
    difference = np.abs(ours - expected.astype(float)).max(-1)
    assert np.median(difference) <= 1 and (difference > 4).mean() < 0.1
    assert np.abs(image - expected.astype(float)).mean() > 10


def test_a_shift_is_that_of_numpy():
  """Every distance, by whole pixels and between them, in one dimension."""
  x = RNG.integers(40, 200, (1, 57, 9, 1)).astype(np.uint8)
  distance = np.linspace(-7, 7, 57, dtype=np.float32)[None]
  found = np.asarray(jax.jit(functools.partial(warps.shift, most=7))(
      x, distance, fill=np.uint8([99])))
  at = np.arange(9) + distance[0, :, None]
  whole = np.floor(at).astype(int)
  expected = 0
  for tap in range(-1, 3):
    d = np.abs(at - whole - tap)
    weight = np.where(
        d < 1, 1.5 * d**3 - 2.5 * d**2 + 1,
        -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)
    place = whole + tap
    value = np.take_along_axis(x[0, :, :, 0], place.clip(0, 8), 1)
    expected += weight * np.where((place >= 0) & (place < 9), value, 99.)
  np.testing.assert_allclose(found[0, :, :, 0], expected, atol=0.501)


@pytest.mark.nightly
def test_operations_are_drawn_alike_and_half_are_skipped(monkeypatch):
  drawn = []
  def record(images, kind, level, sign, fill):
    jax.debug.callback(lambda *x: drawn.append(x), kind, level, sign)
    return images
  monkeypatch.setattr(rand_augment, 'apply', record)
  jax.block_until_ready(rand_augment.rand_augment(
      jax.random.key(0), jnp.zeros((4000, 1, 1, 3), jnp.uint8), magnitude=9.,
      std=0.5, layers=2, fill=FILL))
  jax.effects_barrier()
  kind, level, sign = (np.concatenate(x) for x in zip(*drawn))
  counts = np.bincount(kind, minlength=16)
  assert abs(counts[0] / 8000 - 0.5) < 0.02
  assert stats.chisquare(counts[1:]).pvalue > 0.01
  assert stats.chi2_contingency(np.histogram2d(
      *(x[0] > 0 for x in drawn), bins=2)[0]).pvalue > 0.01
  inside = level[level < 1] * 10
  # Clipped at 10, two deviations above the mean.
  assert abs((level == 1).mean() - stats.norm.sf(2)) < 0.01
  assert stats.kstest(inside, stats.truncnorm(
      -18, 2, loc=9, scale=0.5).cdf).pvalue > 0.01
  assert abs(sign.mean()) < 0.05


@pytest.mark.parametrize('kind, enhancer', [
    (0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast),
    (2, ImageEnhance.Color)])
def test_jitter_is_that_of_pillow(kind, enhancer):
  factors = np.float32([0.6, 1.4, 1, 0.73])
  found = color.jitter(IMAGES, np.full(B, kind), factors)
  for image, factor, ours in zip(IMAGES, factors, found):
    expected = np.asarray(
        enhancer(Image.fromarray(image)).enhance(float(factor)))
    assert np.abs(np.asarray(ours, int) - expected).max() <= 1


def test_color_jitter_takes_every_order_and_its_range(monkeypatch):
  """Brightness of a constant gray tells its factor; the others keep it."""
  taken, original = [], color.jitter

  def recorded(images, kind, factor):
    jax.debug.callback(
        lambda x: taken.append(np.asarray(x)), kind, ordered=True)
    return original(images, kind, factor)

  monkeypatch.setattr(color, 'jitter', recorded)
  found = np.asarray(jax.jit(functools.partial(
      color.color_jitter, strength=0.4))(
          jax.random.key(0), np.full((3000, 1, 1, 3), 100, np.uint8)))
  factor = (found[:, 0, 0, 0] + 0.5) / 100
  assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).statistic < 0.03
  jax.effects_barrier()
  orders, counts = np.unique(np.stack(taken, 1), axis=0, return_counts=True)
  assert len(orders) == 6 and stats.chisquare(counts).pvalue > 0.01


def boxes_of_numpy(num, height, width):
  """Height and width [num, 2] of timm's random erasing."""
  rng = np.random.default_rng(1)
  area = rng.uniform(0.02, 1 / 3, (num, 10)) * height * width
  ratio = np.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3), (num, 10)))
  size = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], -1).round()
  fits = (size < (height, width)).all(-1)
  return size[np.arange(num), fits.argmax(1)][fits.any(1)]


def test_random_erasing():
  height, width, num = 40, 60, 3000
  images = np.full((num, height, width, 1), 7, np.float32)
  erase = jax.jit(erasing.erase)
  found = np.asarray(erase(jax.random.key(0), images, 1.))[..., 0]
  mask = found != 7
  rows, columns = mask.any(2), mask.any(1)
  np.testing.assert_array_equal(mask, rows[:, :, None] & columns[:, None])
  assert stats.kstest(found[mask][:5000], 'norm').pvalue > 0.01
  size = np.stack([rows.sum(1), columns.sum(1)], 1)
  expected = boxes_of_numpy(num, height, width)
  for feature in (np.prod, lambda x, axis: np.log(x[:, 0] / x[:, 1])):
    assert stats.ks_2samp(
        feature(size, axis=1), feature(expected, axis=1)).pvalue > 0.01
  room = (height, width) - size
  for axis, start in enumerate((rows.argmax(1), columns.argmax(1))):
    place = (start + 0.5) / (room[:, axis] + 1)
    assert stats.kstest(place[room[:, axis] > 15], 'uniform').pvalue > 0.01
  some = np.asarray(erase(jax.random.key(1), images, 0.25))[..., 0]
  assert abs((some != 7).any((1, 2)).mean() - 0.25) < 0.03


def test_in_augment_they_leave_the_rest_alone(monkeypatch):
  """The crop, the flip and the mixing are those of runs without them."""
  labels = np.arange(B) % 2

  def program(**fields):
    config = data.default_config()
    config.update(dict(flip=True, mixup=1., crop_padding=2) | fields)
    return jax.jit(functools.partial(
        data.augment, config_data=config, num_classes=2, mean=(.5,) * 3,
        std=(.25,) * 3, image_size=H))

  # Every operation compiles for seconds; these do less.
  called = []
  for module, name in ((rand_augment, 'rand_augment'),
                       (color, 'color_jitter'), (erasing, 'erase')):
    monkeypatch.setattr(module, name, lambda key, images, *args, **kwargs: (
        called.append((images.dtype.name, kwargs)), images)[1])
  key = jax.random.key(1)
  plain, targets = program()(key, IMAGES, labels)
  assert not called
  images, same = program(
      rand_augment=dict(magnitude=9.), erasing=0.5, color_jitter=0.4)(
          key, IMAGES, labels)
  np.testing.assert_array_equal(targets, same)
  np.testing.assert_allclose(images, plain, atol=1e-5)
  assert [kind for kind, _ in called] == ['uint8', 'uint8', 'float32']
  assert called[1][1]['magnitude'] == 9
  np.testing.assert_array_equal(called[1][1]['fill'], 3 * [128])
  for fields in (dict(rand_augment=dict(magnitude=9.)),
                 dict(color_jitter=0.4)):
    with pytest.raises(ValueError, match='color images'):
      program(**fields)(key, IMAGES[..., :1], labels)


@pytest.mark.parametrize('fields, named', [
    (dict(erasing=1.5), r'data\.erasing=1\.5'),
    (dict(color_jitter=-1.), r'data\.color_jitter=-1\.0'),
    (dict(rand_augment=dict(magnitude=11.)), r'rand_augment\.magnitude=11\.0'),
    (dict(rand_augment=dict(std=-1.)), r'rand_augment\.std=-1\.0'),
    (dict(rand_augment=dict(layers=0)), r'rand_augment\.layers=0'),
])
def test_wrong_fields_are_refused(fields, named):
  config = data.default_config()
  config.update(fields)
  with pytest.raises(ValueError, match=named):
    data.check_augmentation(config)


def test_regression_refuses_what_turns_images():
  config = data.default_config()
  config.rand_augment.magnitude = 9.
  with pytest.raises(ValueError, match=r'rand_augment\.magnitude=9'):
    data.check_regression(config)
