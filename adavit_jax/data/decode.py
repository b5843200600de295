"""From the bytes of an image file to a square uint8 array."""

import io
import struct
import zlib

from etils import epath
import numpy as np
from PIL import Image
from PIL import ImageOps

from adavit_jax.data import data_config

# What Pillow's readers were seen to raise on damaged files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)

# Of a resized image. A strip a pixel high can have gigabytes of them.
_MOST_PIXELS = 10**8


class CorruptImageError(ValueError):
  """The bytes are not an image that can be decoded."""


def decode_image(
    data: bytes, *, size: int, channels: int = 3, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Decodes an image of any size and mode.

  16-bit greys are scaled to 8 bits, transparent pixels are shown on white, the
  EXIF orientation is applied, and of an animation the first frame is taken.

  Args:
    data: a file's bytes, of any format that Pillow reads.
    size: pixels a side of the result: the short side is resized to it
      (antialiased) and the centre cropped.
    channels: 3 for RGB, 1 for grey.
    interpolation: 'bicubic' or 'bilinear'.

  Returns:
    uint8 [size, size, channels].

  Raises:
    CorruptImageError: the bytes cannot be decoded, or are those of a strip that
      would take gigabytes when its short side is resized.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      short = min(width, height)
      if size * size * max(width, height) > _MOST_PIXELS * short:
        raise ValueError(f'{width} x {height} pixels have more than '
                         f'{_MOST_PIXELS} when resized')
      # A JPEG can be decoded at a half, quarter or eighth of its size at a
      # fraction of the time; twice the target leaves the resize its quality.
      if short > 2 * size:
        scale = 2 * size / short
        image.draft(None, tuple(int(s * scale) + 1 for s in image.size))
      image = ImageOps.exif_transpose(image)
      image = to_mode(image, 'RGB' if channels == 3 else 'L')
      image = fit(image, size, interpolation)
      return np.asarray(image).reshape(size, size, channels)
  except _DAMAGE as error:
    raise CorruptImageError(f'{type(error).__name__}: {error}') from error


def read(path, config_data, model) -> np.ndarray:
  """Reads an image file as evaluation does.

  Args:
    path: of the file.
    config_data: its load_size, crop and interpolation count.
    model: anything with image_size S and channels C.

  Returns:
    uint8 [S, S, C].

  Raises:
    CorruptImageError: the file cannot be decoded.
    FileNotFoundError: there is none.
  """
  size = model.image_size
  data = epath.Path(path).expanduser().read_bytes()
  try:
    image = decode_image(
        data, size=data_config.load_size(config_data), channels=model.channels,
        interpolation=data_config.interpolation(config_data),
    )
  except CorruptImageError as error:
    raise CorruptImageError(f'{path} cannot be decoded ({error})') from error
  start = (len(image) - size) // 2
  return image[start:start + size, start:start + size]


def to_mode(image: Image.Image, mode: str) -> Image.Image:
  """Converts any image to 8 bits of `mode`, 'RGB' or 'L'."""
  if image.mode == 'F' or image.mode.startswith('I'):
    # Pillow clips these modes to 255 where it should scale them.
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = values.max(initial=0)
    if image.mode.startswith('I;16') or top > 255:
      full = 65535
    else:
      full = 1 if image.mode == 'F' and top <= 1 else 255
    values = np.rint(np.clip(values / full, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(values)
  elif image.has_transparency_data:
    image = image.convert('RGBA')
    ground = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(ground, image)
  elif image.mode == 'LAB':
    image = image.convert('RGB')  # Pillow knows no other way from it.
  return image if image.mode == mode else image.convert(mode)


def fit(
    image: Image.Image, size: int, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes the short side to `size` pixels and crops the centre square."""
  width, height = image.size
  scale = size / min(width, height)
  if scale != 1:
    width, height = max(round(width * scale), size), max(
        round(height * scale), size
    )
    resampling = Image.Resampling[interpolation.upper()]
    image = image.resize((width, height), resampling)
  if (width, height) != (size, size):
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
  return image


def fit_arrays(
    images: np.ndarray, size: int, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Resizes uint8 [n, h, w] greys as `fit` does: uint8 [n, size, size, 1]."""
  if images.shape[1:] == (size, size):
    return images[..., None]
  fitted = np.empty((len(images), size, size, 1), np.uint8)
  for row, image in enumerate(images):
    fitted[row, ..., 0] = fit(Image.fromarray(image), size, interpolation)
  return fitted
