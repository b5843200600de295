"""Decodes and resizes by the fastest library that is installed.

simplejpeg and cykooz_resizer, of the extra `input`, take about half of the CPU
time of Pillow. Both need only bytes and arrays, and release the GIL. What
simplejpeg does not decode (other formats, CMYK, an EXIF orientation, damaged
files), Pillow does.
"""

import importlib.util
import io
import threading

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import UnidentifiedImageError

from adavit_jax.data import decode

_FACTORS = (8, 4, 2)
# EXIF data begins within the first segments of a file.
_EXIF, _EXIF_WITHIN = b'Exif\0\0', 1 << 16

if importlib.util.find_spec('simplejpeg'):
  import simplejpeg
else:
  simplejpeg = None
if importlib.util.find_spec('cykooz_resizer'):
  import cykooz_resizer
else:
  cykooz_resizer = None

_local = threading.local()  # a resizer keeps buffers


def opened(data: bytes, channels: int):
  """Reads the size of an image, as it is upright.

  Args:
    data: contents of a file in any format that Pillow reads.
    channels: 3 for RGB, 1 for gray.

  Returns:
    An object with height, width and `decode`.

  Raises:
    CorruptImageError: if Pillow does not know the format.
    Exception: of any type, if the image is damaged.
  """
  if simplejpeg is not None and data[:2] == b'\xff\xd8':
    try:
      height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
      space = None
    if (space in ('YCbCr', 'RGB', 'Gray') and not _turned(data)
        and height * width <= Image.MAX_IMAGE_PIXELS):
      return _Jpeg(data, channels, height, width)
  return _Pillow(data, channels)


class _Jpeg:
  """A JPEG that simplejpeg decodes."""

  def __init__(self, data, channels, height, width):
    self._data, self._channels = data, channels
    self.height, self.width = height, width

  def decode(self, shrink: float) -> tuple[np.ndarray, int]:
    """Decodes at 1 / factor of the size, with a factor of at most `shrink`.

    Returns:
      uint8 [H / factor, W / factor, C], rounded up, and the factor.
    """
    factor = _factor(shrink)
    try:
      array = simplejpeg.decode_jpeg(
          self._data, 'RGB' if self._channels == 3 else 'GRAY',
          min_factor=factor,
          min_height=-(-self.height // factor) if factor > 1 else 0,
          min_width=-(-self.width // factor) if factor > 1 else 0)
    except ValueError:  # damaged in a way that Pillow may forgive
      return _Pillow(self._data, self._channels).decode(shrink)
    return array, factor


class _Pillow:
  """An image in any format."""

  def __init__(self, data, channels):
    self._mode = 'RGB' if channels == 3 else 'L'
    try:
      self._image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:  # its text is an object's address
      raise decode.CorruptImageError(
          'UnidentifiedImageError: no format that Pillow reads') from error
    self._shrinks = self._image.format == 'JPEG' and not _turned(data)
    if not self._shrinks:
      self._image = decode.upright(self._image)
    self.width, self.height = self._image.size

  def decode(self, shrink: float) -> tuple[np.ndarray, int]:
    """See `_Jpeg`."""
    factor = _factor(shrink) if self._shrinks else 1
    if factor > 1:
      self._image.draft(None, (self.width // factor, self.height // factor))
    image = decode.to_mode(self._image, self._mode)
    return np.asarray(image).reshape(
        image.height, image.width, -1), factor


def resize(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
  """Resizes uint8 [H, W, C] to [size, size, C], with antialiasing.

  Args:
    pixels: C is 1 or 3.
    size: side of the result.
    interpolation: 'bicubic' (a = -0.5) or 'bilinear'.
  """
  height, width, channels = pixels.shape
  if (height, width) == (size, size):
    return pixels
  if cykooz_resizer is None:
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    image = image.resize((size, size), Image.Resampling[interpolation.upper()])
    return np.asarray(image).reshape(size, size, channels)
  if not hasattr(_local, 'resizer'):
    _local.resizer = cykooz_resizer.Resizer()
    _local.options = _options()
  kind = cykooz_resizer.PixelType.U8x3 if channels == 3 else (
      cykooz_resizer.PixelType.U8)
  source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
  resized = cykooz_resizer.ImageData(size, size, kind)
  _local.resizer.resize(source, resized, _local.options[interpolation])
  return np.frombuffer(resized.get_buffer(), np.uint8).reshape(
      size, size, channels)


def _options():
  filters = cykooz_resizer.FilterType
  return {
      name: cykooz_resizer.ResizeOptions(
          resize_alg=cykooz_resizer.ResizeAlg.convolution(kind),
          use_alpha=False)
      for name, kind in (('bicubic', filters.catmull_rom),
                         ('bilinear', filters.bilinear))}


def _factor(shrink):
  return next((factor for factor in _FACTORS if factor <= shrink), 1)


def _turned(data):
  """Whether an EXIF orientation turns or flips the image."""
  if _EXIF not in data[:_EXIF_WITHIN]:
    return False
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
  except Exception:  # damaged EXIF, in many ways: `decode.upright` decides
    return True
