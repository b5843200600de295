"""Decodes image files to square uint8 arrays."""

import contextlib
import io

from etils import epath
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import UnidentifiedImageError

from adavit_jax import paths
from adavit_jax.data import data_config

# Limit for the resized image: a one-pixel-high strip could take gigabytes.
_MOST_PIXELS = 10**8


# EXIF orientation: what turns the pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptImageError(ValueError):
  """Raised if an image cannot be decoded."""


def decode_image(
    data: bytes, *, size: int, channels: int = 3, interpolation: str = 'bicubic'
) -> np.ndarray:
  """Decodes an image of any size and mode.

  Scales grays of more than 8 bits (see `to_mode`), blends transparent pixels
  with white, applies the EXIF orientation and takes the first frame of an
  animation.

  Args:
    data: contents of a file in any format that Pillow reads.
    size: output side in pixels; the short side is resized to it with
      antialiasing, then the center is cropped.
    channels: 3 for RGB, 1 for gray.
    interpolation: 'bicubic' or 'bilinear'.

  Returns:
    uint8 [size, size, channels].

  Raises:
    CorruptImageError: if the bytes cannot be decoded, the pixels exceed the
      range of their type, or the image is so narrow that it would take
      gigabytes once its short side is resized.
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
      image = to_mode(upright(image), 'RGB' if channels == 3 else 'L')
      image = fit(image, size, interpolation)
      return np.asarray(image).reshape(size, size, channels)
  except UnidentifiedImageError as error:  # its text is an object's address
    raise CorruptImageError(
        'UnidentifiedImageError: no format that Pillow reads') from error
  # Decoders raise errors of any type, also those that other packages add to
  # Pillow.
  except Exception as error:
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
  file = epath.Path(paths.expanded(path, 'image'))
  if paths.is_special(file):
    raise CorruptImageError(f'{path} is a pipe or a device, not an image file')
  data = file.read_bytes()
  try:
    image = decode_image(
        data, size=data_config.load_size(config_data), channels=model.channels,
        interpolation=data_config.interpolation(config_data))
  except CorruptImageError as error:
    raise CorruptImageError(f'{path} cannot be decoded ({error})') from error
  return center(image, size)


def center(images, size):
  """Returns the center square of images, [..., H, W, C] -> [..., S, S, C]."""
  top, left = ((side - size) // 2 for side in images.shape[-3:-1])
  return images[..., top:top + size, left:left + size, :]


def upright(image: Image.Image) -> Image.Image:
  """Applies the EXIF orientation.

  Not by Pillow's `exif_transpose`, which also writes the other EXIF tags, and
  fails if it cannot.
  """
  image.load()
  orientation = None
  with contextlib.suppress(Exception):  # damaged EXIF, in many ways
    orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
  method = _UPRIGHT.get(orientation)
  if method is None:
    return image
  turned = image.transpose(method)
  turned.format = image.format
  return turned


def to_mode(image: Image.Image, mode: str) -> Image.Image:
  """Converts any image to the 8-bit `mode`, 'RGB' or 'L'.

  16-bit integers are in 0 to 65535, integers of 32 bits in 0 to 255, and floats
  in 0 to 1. Values slightly outside, as of interpolation, are clipped; NaN is
  black.

  Raises:
    ValueError: if values are so far outside that the range must be another.
  """
  if image.mode == 'F' or image.mode.startswith('I'):
    # Pillow clips these modes to 255 instead of scaling them.
    image = Image.fromarray(_scaled(image))
  elif image.has_transparency_data:
    image = image.convert('RGBA')
    background = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(background, image)
  elif image.mode == 'LAB':
    image = image.convert('RGB')  # The only conversion that Pillow has.
  return image if image.mode == mode else image.convert(mode)


def _scaled(image):
  """Grays of more than 8 bits as uint8 [H, W]; see `to_mode`."""
  # Pillow opens PNG and PPM of 16 bits as 'I', too.
  if image.mode == 'F':
    kind, top = 'floating-point', 1
  elif image.mode != 'I' or image.format in ('PNG', 'PPM'):
    kind, top = '16-bit', 65535
  else:
    kind, top = '32-bit', 255
  values = np.asarray(image).astype(np.float64)
  for value in (np.nanmin(values), np.nanmax(values)):
    if not -top <= value <= 2 * top:
      raise ValueError(f'{kind} pixels must be in 0 to {top}, not {value:g}: '
                       f'rescale them, or save them with 8 or 16 bits')
  return np.rint(
      np.clip(np.nan_to_num(values) / top, 0, 1) * 255).astype(np.uint8)


def fit(
    image: Image.Image, size: int, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes the short side to `size` pixels and crops the center square."""
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
  """Applies `fit` to grays: uint8 [n, h, w] -> uint8 [n, size, size, 1]."""
  if images.shape[1:] == (size, size):
    return images[..., None]
  fitted = np.empty((len(images), size, size, 1), np.uint8)
  for row, image in enumerate(images):
    fitted[row, ..., 0] = fit(Image.fromarray(image), size, interpolation)
  return fitted
