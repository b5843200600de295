"""Random crops: torchvision's RandomResizedCrop, and the pixels cut out."""

import io
import math

from adavit_jax import data
from adavit_jax.data import crops
from adavit_jax.data import pixels
import numpy as np
from PIL import Image
import pytest
from scipy import stats

IMAGE = np.random.default_rng(0).integers(64, 192, (60, 80, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(IMAGE[:6, :8]).resize(
    (80, 60), Image.Resampling.BICUBIC))


def encode(image, kind='JPEG', **kwargs):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **{'quality': 95, **kwargs})
  return file.getvalue()


@pytest.fixture(params=['input', 'pillow'])
def library(request, monkeypatch):
  """The libraries of the extra `input`, or Pillow alone."""
  if request.param == 'input':
    for name in ('simplejpeg', 'cykooz_resizer'):
      pytest.importorskip(name)
  else:
    monkeypatch.setattr(pixels, 'simplejpeg', None)
    monkeypatch.setattr(pixels, 'cykooz_resizer', None)


def expected_sizes(num, height, width, min_area):
  """Height and width [num, 2] of the recipe's rectangles, all at once."""
  rng = np.random.default_rng(1)
  area = rng.uniform(min_area, 1, (num, 10)) * height * width
  ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (num, 10)))
  sizes = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], -1).round()
  fits = (sizes <= (height, width)).all(-1)
  assert fits.any(1).mean() > 0.99
  return sizes[np.arange(num), fits.argmax(1)][fits.any(1)]


@pytest.mark.parametrize('height, width, min_area', [
    (375, 500, 0.08), (500, 400, 0.3)])
def test_areas_ratios_and_places_are_the_recipes(height, width, min_area):
  boxes = np.array([
      crops.draw(np.random.default_rng((0, i)), height, width,
                 min_area=min_area) for i in range(1500)])
  corner, size = boxes[:, :2], boxes[:, 2:]
  expected = expected_sizes(6000, height, width, min_area)
  for feature in (np.prod, lambda x, axis: np.log(x[:, 1] / x[:, 0])):
    found = stats.ks_2samp(feature(size, axis=1), feature(expected, axis=1))
    assert found.pvalue > 0.01
  room = (height, width) - size
  assert (corner >= 0).all() and (corner <= room).all()
  for axis in range(2):  # uniform over 0..room, whatever the size
    place = (corner[:, axis] + 0.5) / (room[:, axis] + 1)
    assert stats.kstest(place[room[:, axis] > 20], 'uniform').pvalue > 0.01


@pytest.mark.parametrize('height, width, box', [
    (10, 400, (0, 194, 10, 13)), (400, 10, (194, 0, 13, 10))])
def test_the_largest_centered_crop_of_a_strip(height, width, box):
  found = crops.draw(np.random.default_rng(0), height, width, min_area=1.)
  assert abs(np.subtract(found, box)).max() <= 1
  assert min(found[2:]) == 10


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_crop_is_cut_out_and_resized(library, interpolation, channels):
  """Of every place of the frame, by the box that its seed alone determines."""
  jpeg = encode(IMAGE if channels == 3 else IMAGE[..., 0])
  frame = Image.open(io.BytesIO(jpeg))
  seeds = [(0, i) for i in range(6)]
  found = crops.random_crops(
      jpeg, seeds, crops.Crop(32, 0.1), channels=channels,
      interpolation=interpolation)
  assert found.shape == (6, 32, 32, channels)
  for seed, image in zip(seeds, found):
    top, left, height, width = crops.draw(
        np.random.default_rng(seed), 60, 80, min_area=0.1)
    expected = np.asarray(frame.crop(
        (left, top, left + width, top + height)).resize(
            (32, 32), Image.Resampling[interpolation.upper()]), float)
    difference = np.abs(image - expected.reshape(32, 32, -1))
    assert difference.max() <= 6 and difference.mean() < 0.5
  alone = crops.random_crops(
      jpeg, seeds[4:5], crops.Crop(32, 0.1), channels=channels,
      interpolation=interpolation)
  np.testing.assert_array_equal(alone, found[4:5])


def test_large_jpegs_are_decoded_smaller(library):
  """At 1/4 for crops of at least 4 times the size, with the same picture."""
  jpeg = encode(np.asarray(Image.fromarray(SMOOTH).resize((641, 479))))
  image = pixels.opened(jpeg, 3)
  assert (image.height, image.width) == (479, 641)
  array, factor = image.decode(7)
  assert factor == 4 and array.shape == (120, 161, 3)
  crop, seeds = crops.Crop(32, 0.25), [(0, i) for i in range(8)]
  found = crops.random_crops(jpeg, seeds, crop)
  frame = Image.open(io.BytesIO(jpeg))
  for seed, image in zip(seeds, found):
    top, left, height, width = crops.draw(
        np.random.default_rng(seed), 479, 641, min_area=0.25)
    assert min(height, width) > 128
    expected = frame.crop((left, top, left + width, top + height)).resize(
        (32, 32), Image.Resampling.BICUBIC)
    assert np.abs(image - np.asarray(expected, float)).mean() < 2


def test_turned_gray_and_transparent_images(library):
  crop = crops.Crop(20, 1.)
  exif = Image.Exif()
  exif[0x0112] = 6  # is shown turned to the right
  marked = SMOOTH.copy()
  marked[:, :40] = 0
  turned = crops.random_crops(encode(marked, exif=exif), [0], crop)[0]
  assert turned[0].max() < 40 < turned[-1].mean()
  gray = crops.random_crops(encode(SMOOTH[..., 0]), [0], crop)
  np.testing.assert_array_equal(gray[..., 0], gray[..., 2])
  clear = np.dstack([SMOOTH, np.zeros((60, 80), np.uint8)])
  assert (crops.random_crops(encode(clear, 'PNG'), [0], crop) == 255).all()
  cmyk = io.BytesIO()
  Image.fromarray(SMOOTH).convert('CMYK').save(cmyk, 'JPEG')
  assert crops.random_crops(cmyk.getvalue(), [0], crop).shape == (1, 20, 20, 3)


@pytest.mark.parametrize('damaged', [
    b'', b'\xff\xd8no image', encode(IMAGE)[:1500],
    encode(IMAGE, 'PNG')[:1500]])
def test_a_damaged_image_is_refused(library, damaged):
  with pytest.raises(data.CorruptImageError):
    crops.random_crops(damaged, [0], crops.Crop(8, 0.5))


def test_what_follows_the_image_is_ignored(library):
  jpeg = encode(IMAGE)
  np.testing.assert_array_equal(
      *(crops.random_crops(x, [0], crops.Crop(8, 0.5))
        for x in (jpeg, jpeg + b'\0\xff\0' * 9)))
