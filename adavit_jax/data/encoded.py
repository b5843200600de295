"""Sets of encoded images, and the threads that decode them."""

from collections.abc import Sequence
from concurrent import futures
import os
from typing import Protocol

import numpy as np

from adavit_jax.data import decode


class EncodedImages(Protocol):
  """n encoded images of one split.

  Attributes:
    label: name of the set, e.g. 'cifar10-train'.
    key: JSON-serialisable values that tell the set from others of its source.
    channels: 1 or 3.
  """

  label: str
  key: dict
  channels: int

  def __len__(self) -> int:
    ...

  def name(self, index: int) -> str:
    """Returns the name of an image for messages."""

  def labels(self) -> np.ndarray:
    """Returns int32 [n]; may have to read every image."""

  def read(
      self, indices: Sequence[int], pool: futures.Executor
  ) -> list[tuple[bytes | decode.CorruptImageError, int]]:
    """Returns the bytes, or why they cannot be read, and label of each image.
    """

  def digest(self, pool: futures.Executor) -> str:
    """Returns a text that differs for other images, labels or orders.

    Names, sizes and times of files do not tell: files are rewritten in place,
    and copied with their times.
    """


def decoder_pool() -> futures.ThreadPoolExecutor:
  """Returns a thread pool for decoding: Pillow releases the GIL."""
  return futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1))


def decode_rows(
    encoded: EncodedImages,
    rows: Sequence[int],
    pool: futures.Executor,
    *,
    size: int,
    interpolation: str,
) -> list[tuple[np.ndarray | decode.CorruptImageError, int]]:
  """Returns the image uint8 [H, W, C] and the label of each row.

  Undecodable images are replaced by their CorruptImageError.
  """

  def attempt(record):
    data, label = record
    if isinstance(data, decode.CorruptImageError):
      return record
    try:
      image = decode.decode_image(
          data, size=size, channels=encoded.channels,
          interpolation=interpolation)
    except decode.CorruptImageError as error:
      return error, label
    return image, label

  return list(pool.map(attempt, encoded.read(rows, pool)))


def refusal(name: str, error: Exception) -> decode.CorruptImageError:
  """Returns an error that names a corrupt image and the fix."""
  return decode.CorruptImageError(
      f'{name} cannot be decoded ({error}): repair or remove it, or set'
      " config.data.on_corrupt='skip'")
