"""Decoding: every mode, orientation and size of image, damaged ones by name."""

import io
import struct

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest

from adavit_jax import data
from adavit_jax.data import decode


def as_bytes(tmp_path, image, name, **kwargs):
  path = tmp_path / name
  image.save(path, **kwargs)
  return path.read_bytes()


def palette(*, transparent):
  image = Image.new('P', (4, 4), 1)
  image.putpalette([0, 0, 0, 30, 60, 90])
  if transparent:
    image.info['transparency'] = 1
  return image


ODD = {
    'gray.png': (Image.new('L', (4, 4), 90), (90, 90, 90)),
    'gray_alpha.png': (Image.new('LA', (4, 4), (90, 255)), (90, 90, 90)),
    'clear.png': (Image.new('RGBA', (4, 4), (9, 9, 9, 0)), (255, 255, 255)),
    'opaque.png': (Image.new('RGBA', (4, 4), (9, 8, 7, 255)), (9, 8, 7)),
    'palette.png': (palette(transparent=False), (30, 60, 90)),
    'palette.gif': (palette(transparent=False), (30, 60, 90)),
    'palette_clear.png': (palette(transparent=True), (255, 255, 255)),
    'bits.png': (Image.new('1', (4, 4), 1), (255, 255, 255)),
    'deep.png': (
        Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)), (100,) * 3
    ),
    'dark_deep.png': (
        Image.fromarray(np.full((4, 4), 200, np.uint16)), (1,) * 3
    ),
    'deep.pgm': (
        Image.fromarray(np.full((4, 4), 100 * 257, np.int32)), (100,) * 3
    ),
    'low_int.tif': (Image.new('I', (4, 4), 100), (100,) * 3),
    'float.tif': (
        Image.fromarray(np.full((4, 4), 0.2, np.float32)), (51,) * 3
    ),
    'nan.tif': (
        Image.fromarray(np.float32(4 * [[0.2, 0.2, 0.2, np.nan]])),
        [[51], [51], [51], [0]],
    ),
    'cmyk.tif': (Image.new('CMYK', (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    'lab.tif': (Image.new('LAB', (4, 4), (200, 128, 128)), (194,) * 3),
}


@pytest.mark.parametrize('name', ODD)
def test_every_mode_becomes_rgb_or_gray(tmp_path, name):
  image, color = ODD[name]
  written = as_bytes(tmp_path, image, name)
  found = decode.decode_image(written, size=4)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, np.full((4, 4, 3), color))
  gray = decode.decode_image(written, size=4, channels=1)
  np.testing.assert_array_equal(
      gray[..., 0], Image.fromarray(found).convert('L'))


@pytest.mark.parametrize('high, dtype, full', [
    (1.001, np.float32, 1.), (257, np.int32, 255)])
def test_one_rule_for_each_type_whatever_the_largest_value(
    tmp_path, high, dtype, full):
  ramp = np.linspace(0, 1, 16).reshape(4, 4)
  whole, over = (
      decode.decode_image(as_bytes(
          tmp_path, Image.fromarray((ramp * top).astype(dtype)), 'a.tif'),
          size=4).astype(int) for top in (full, high))
  assert abs(whole - over).max() <= 2 and whole.max() == 255
  far = Image.fromarray((ramp * 100 * high).astype(dtype))
  with pytest.raises(data.CorruptImageError, match='rescale'):
    decode.decode_image(as_bytes(tmp_path, far, 'a.tif'), size=4)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_pillows_where_that_can_write_the_other_tags(
    tmp_path, orientation):
  image = Image.effect_noise((8, 8), 90).convert('RGB')
  exif = Image.Exif()
  exif[0x0112] = orientation
  written = as_bytes(tmp_path, image, 'a.png', exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(written)))
  np.testing.assert_array_equal(
      decode.decode_image(written, size=8), np.asarray(upright))


def unwritable_exif(path, orientation=6):
  """An EXIF block whose resolution, -1 / 0, Pillow cannot write."""
  entry = lambda *values: struct.pack('<HHII', *values)
  exif = b''.join((
      b'Exif\0\0II*\0', struct.pack('<IH', 8, 2),
      entry(274, 3, 1, orientation), entry(282, 10, 1, 38),
      struct.pack('<Iii', 0, -1, 0)))
  pixels = np.zeros((16, 16), np.uint8)
  pixels[:, :8] = 255  # white on the left
  Image.fromarray(pixels).save(path, 'JPEG', exif=exif, quality=95)
  return path.read_bytes()


def test_exif_that_cannot_be_written_does_not_matter(tmp_path):
  written = unwritable_exif(tmp_path / 'a.jpg')
  with pytest.raises(struct.error):
    ImageOps.exif_transpose(Image.open(io.BytesIO(written)))
  found = decode.decode_image(written, size=16)
  assert found[:7].min() > 240 and found[9:].max() < 15


def test_a_decoders_own_error_is_of_a_corrupt_image(tmp_path, monkeypatch):
  written = as_bytes(tmp_path, Image.new('L', (4, 4)), 'a.png')
  def fail(*_):
    raise RuntimeError('a plug-in')
  monkeypatch.setattr(Image.Image, 'load', fail)
  with pytest.raises(data.CorruptImageError, match='a plug-in'):
    decode.decode_image(written, size=4)


def test_exif_rotation_is_applied(tmp_path):
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[:, :8] = 255  # White on the left.
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
  written = as_bytes(
      tmp_path, Image.fromarray(pixels), 'a.jpg', exif=exif, quality=95
  )
  found = decode.decode_image(written, size=16)
  assert found[:7].min() > 240 and found[9:].max() < 15


@pytest.mark.parametrize('shape', [(4, 10), (9, 4)])
def test_center_is_cropped_exactly(tmp_path, shape):
  pixels = np.random.default_rng(0).integers(
      0, 256, (*shape, 3), dtype=np.uint8
  )
  written = as_bytes(tmp_path, Image.fromarray(pixels), 'a.png')
  top, left = (shape[0] - 4) // 2, (shape[1] - 4) // 2
  np.testing.assert_array_equal(
      decode.decode_image(written, size=4),
      pixels[top:top + 4, left:left + 4],
  )


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('size', [(100, 75), (3, 5), (1, 40), (41, 40)])
def test_short_side_is_resized(tmp_path, suffix, size):
  # Brightness along a diagonal: the center's value survives any resize.
  across, down = np.meshgrid(*(np.linspace(-1, 1, s) for s in size))
  pixels = (128 + 50 * (across + down) / 2).astype(np.uint8)
  written = as_bytes(tmp_path, Image.fromarray(pixels), f'a.{suffix}')
  found = decode.decode_image(written, size=8, channels=1)
  assert found.shape == (8, 8, 1)
  center = pixels[(size[1] - 1) // 2, (size[0] - 1) // 2]
  assert abs(found[3:5, 3:5].mean() - float(center)) < 30
  assert found[-1, -1, 0] >= found[0, 0, 0]


def test_a_large_jpeg_keeps_its_detail(tmp_path):
  stripes = np.where(np.arange(128) // 8 % 2, 220, 30).astype(np.uint8)
  image = Image.fromarray(np.tile(stripes, (128, 1)))
  jpg, png = (
      decode.decode_image(
          as_bytes(tmp_path, image, f'a.{suffix}'), size=16, channels=1)
      for suffix in ('jpg', 'png'))
  np.testing.assert_allclose(jpg.astype(int), png.astype(int), atol=12)


def test_strips_are_refused(tmp_path):
  """Resized by their short side, they would take gigabytes."""
  strip = as_bytes(tmp_path, Image.new('L', (1, 20_000)), 'a.png')
  with pytest.raises(data.CorruptImageError, match='1 x 20000'):
    decode.decode_image(strip, size=224)
  assert decode.decode_image(strip, size=4).shape == (4, 4, 3)


@pytest.mark.parametrize('keep', [0, 10, 60, None])
def test_damaged_bytes_are_refused(tmp_path, keep):
  written = as_bytes(
      tmp_path, Image.effect_noise((20, 20), 50), 'a.png'
  ) if keep is not None else b'not an image at all'
  with pytest.raises(data.CorruptImageError):
    decode.decode_image(written[:keep], size=4)
