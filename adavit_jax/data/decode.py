"""Decodes image files to square uint8 arrays."""

import io
import struct
import zlib

from etils import epath
import numpy as np
from PIL import Image
from PIL import ImageOps

from adavit_jax.data import data_config

# Exceptions that Pillow's readers raise on damaged files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)

# Limit for the resized image: a one-pixel-high strip could take gigabytes.
_MOST_PIXELS = 10**8


class CorruptImageError(ValueError):
  """Raised if an image cannot be decoded."""


def decode_image(
    data: bytes, *, size: int, channels: int = 3, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Decodes an image of any size and mode.

  Scales 16-bit greys to 8 bits, blends transparent pixels with white, applies
  the EXIF orientation and takes the first frame of an animation.

  Args:
    data: contents of a file in any format that Pillow reads.
    size: output side in pixels; the short side is resized to it with
      antialiasing, then the centre is cropped.
    channels: 3 for RGB, 1 for grey.
    interpolation: 'bicubic' or 'bilinear'.

  Returns:
    uint8 [size, size, channels].

  Raises:
    CorruptImageError: if the bytes cannot be decoded, or the image is so narrow
      that it would take gigabytes once its short side is resized.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      short = min(width, height)
      if size * size * max(width, height) > _MOST_PIXELS * short:
        raise ValueError(f'{width} x {height} pixels have more than '
                         f'{_MOST_PIXELS} when resized')
      # Decoding a JPEG at 1/2, 1/4 or 1/8 of its size is much faster; twice the
      # target size preserves the quality of the resize.
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
  """Reads an image file with the preprocessing of evaluation.

  Args:
    path: path of the file.
    config_data: `config.data`; uses load_size, crop and interpolation.
    model: any object with image_size S and channels C.

  Returns:
    uint8 [S, S, C].

  Raises:
    CorruptImageError: if the file cannot be decoded.
    FileNotFoundError: if the file does not exist.
  """
  size = model.image_size
  data = epath.Path(path).expanduser().read_bytes()
  try:
    image = decode_image(
        data, size=data_config.load_size(config_data), channels=model.channels,
        interpolation=data_config.interpolation(config_data))
  except CorruptImageError as error:
    raise CorruptImageError(f'{path} cannot be decoded ({error})') from error
  start = (len(image) - size) // 2
  return image[start:start + size, start:start + size]


def to_mode(image: Image.Image, mode: str) -> Image.Image:
  """Converts any image to the 8-bit `mode`, 'RGB' or 'L'."""
  if image.mode == 'F' or image.mode.startswith('I'):
    # Pillow clips these modes to 255 instead of scaling them.
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
    background = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(background, image)
  elif image.mode == 'LAB':
    image = image.convert('RGB')  # The only conversion that Pillow has.
  return image if image.mode == mode else image.convert(mode)


def fit(
    image: Image.Image, size: int, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes the short side to `size` pixels and crops the centre square."""
  width, height = image.size
  scale = size / min(width, height)
  if scale != 1:
    width, height = max(round(width * scale), size), max(
        round(height * scale), size)
    resampling = Image.Resampling[interpolation.upper()]
    image = image.resize((width, height), resampling)
  if (width, height) != (size, size):
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
  return image


def fit_arrays(
    images: np.ndarray, size: int, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Applies `fit` to greys: uint8 [n, h, w] -> uint8 [n, size, size, 1]."""
  if images.shape[1:] == (size, size):
    return images[..., None]
  fitted = np.empty((len(images), size, size, 1), np.uint8)
  for row, image in enumerate(images):
    fitted[row, ..., 0] = fit(Image.fromarray(image), size, interpolation)
  return fitted
