"""Random crops of encoded images: RandomResizedCrop of the whole frame.

Boxes are drawn as torchvision's RandomResizedCrop draws them (Szegedy et al.,
2015). The decoders and resizers are those of the extra `input`, else Pillow's.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from adavit_jax.data import decode
from adavit_jax.data import pixels as pixels_lib
from adavit_jax.data import splits

_LOG_RATIO = math.log(4 / 3)
_ATTEMPTS = 10


class Crop(NamedTuple):
  """What is cropped from every image.

  Attributes:
    size: S, side of the result in pixels.
    min_area: smallest area fraction, in (0, 1].
  """
  size: int
  min_area: float


def on_reading(split: splits.Split, config_data) -> Crop | None:
  """Returns the random crop of images as they are read.

  Args:
    split: the training images.
    config_data: `config.data`; uses resized_crop and image_size.

  Returns:
    None without resized_crop, or if the device crops: images in memory, and
    those of a split without a method `crops`.
  """
  if (split.lazy and config_data.resized_crop
      and hasattr(split, 'crops')):
    return Crop(config_data.image_size, config_data.resized_crop)
  return None


class Box(NamedTuple):
  """A rectangle of an image, in pixels."""
  top: int
  left: int
  height: int
  width: int


def draw(
    rng: np.random.Generator, height: int, width: int, *, min_area: float
) -> Box:
  """Draws the rectangle of a random resized crop.

  The area fraction is uniform in min_area..1, the log of width / height within
  3/4..4/3, and the place uniform in the image. Rectangles that do not fit are
  drawn again. After 10 of them, it is the largest centered one whose ratio is
  in the range.

  Args:
    rng: generator, which draws 20 uniform numbers and perhaps a place.
    height: of the image, in pixels.
    width: of the image, in pixels.
    min_area: in (0, 1].
  """
  low = (min_area, -_LOG_RATIO)
  for area, log_ratio in rng.uniform(low, (1, _LOG_RATIO), (_ATTEMPTS, 2)):
    side = math.sqrt(area * height * width)
    h = round(side * math.exp(-log_ratio / 2))
    w = round(side * math.exp(log_ratio / 2))
    if 0 < h <= height and 0 < w <= width:
      top, left = rng.integers(0, (height - h + 1, width - w + 1)).tolist()
      return Box(top, left, h, w)
  h = min(height, round(width * 4 / 3))
  w = min(width, round(height * 4 / 3))
  return Box((height - h) // 2, (width - w) // 2, h, w)


def random_crops(
    data: bytes,
    seeds: Sequence[tuple[int, ...]],
    crop: Crop,
    *,
    channels: int = 3,
    interpolation: str = 'bicubic',
) -> np.ndarray:
  """Decodes an image once and returns a random crop of it for each seed.

  JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if every crop then still
  has `crop.size` pixels a side.

  Args:
    data: contents of a file in any format that Pillow reads.
    seeds: n seeds; each determines its crop, whatever the others are.
    crop: size and smallest area.
    channels: C, 3 for RGB, 1 for gray.
    interpolation: 'bicubic' or 'bilinear', with antialiasing.

  Returns:
    uint8 [n, S, S, C].

  Raises:
    CorruptImageError: if the bytes cannot be decoded.
  """
  def draws(height, width):
    return [draw(np.random.default_rng(seed), height, width,
                 min_area=crop.min_area) for seed in seeds]

  try:
    image = pixels_lib.opened(data, channels)
    boxes = draws(image.height, image.width)
    least = min(min(box.height, box.width) for box in boxes)
    array, factor = image.decode(least // crop.size)
  except decode.CorruptImageError:
    raise
  except Exception as error:  # of any type, see `decode.decode_image`
    raise decode.CorruptImageError(
        f'{type(error).__name__}: {error}') from error
  out = np.empty((len(seeds), crop.size, crop.size, channels), np.uint8)
  for row, box in zip(out, boxes):
    part = _part(array, box, factor)
    row[...] = pixels_lib.resize(part, crop.size, interpolation)
  return out


def _part(array, box, factor):
  """Cuts a box out of an array [H / factor, W / factor, C]."""
  if factor == 1:
    return array[box.top:box.top + box.height, box.left:box.left + box.width]
  top, left = round(box.top / factor), round(box.left / factor)
  height, width = round(box.height / factor), round(box.width / factor)
  return array[top:top + height, left:left + width]
