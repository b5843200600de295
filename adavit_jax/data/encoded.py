"""Sets of encoded images, and the threads that decode them."""

from collections.abc import Callable, Sequence
from concurrent import futures
import os
from typing import Protocol

import numpy as np

from adavit_jax.data import decode


class EncodedImages(Protocol):
  """n encoded images of one split.

  Sets that are never decoded to the cache need no label, key and digest.

  Attributes:
    label: name of the set, e.g. 'cifar10-train'.
    key: JSON-serializable values that tell the set from others of its source.
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
      self, indices: Sequence[int]
  ) -> list[tuple[bytes | decode.CorruptImageError, int]]:
    """Returns the bytes, or why they cannot be read, and label of each image.

    Threads call it for a few images each, so that one reads while another
    decodes.
    """

  def digest(self, pool: futures.Executor) -> str:
    """Returns a text that differs for other images, labels or orders.

    Names, sizes and times of files do not tell: files are rewritten in place,
    and copied with their times.
    """


def decoder_pool(threads: int | None = None) -> futures.ThreadPoolExecutor:
  """Returns a thread pool for decoding: the decoders release the GIL.

  Args:
    threads: their number; None for one for each core.
  """
  return futures.ThreadPoolExecutor(threads or os.cpu_count() or 1)


def map_records(
    function: Callable, encoded: EncodedImages, rows: Sequence[int],
    pool: futures.Executor,
) -> list:
  """Returns function(place, bytes) of every row, or its error, and the label.

  Args:
    function: takes a place in `rows` and the bytes of its image.
    encoded: the images.
    rows: [n].
    pool: whose threads read and decode.

  Returns:
    [(result or CorruptImageError, label)] of length n.
  """
  # Some sets read several images at once much faster.
  length = max(1, min(16, len(rows) // (2 * (os.cpu_count() or 1))))

  def part(start):
    records = encoded.read(rows[start:start + length])
    return [(attempt(start + i, data), label)
            for i, (data, label) in enumerate(records)]

  def attempt(place, data):
    if isinstance(data, decode.CorruptImageError):
      return data
    try:
      return function(place, data)
    except decode.CorruptImageError as error:
      return error

  return [pair for pairs in pool.map(part, range(0, len(rows), length))
          for pair in pairs]


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
  def function(_, data):
    return decode.decode_image(
        data, size=size, channels=encoded.channels,
        interpolation=interpolation)

  return map_records(function, encoded, rows, pool)


def refusal(name: str, error: Exception) -> decode.CorruptImageError:
  """Returns an error that names a corrupt image and the fix."""
  return decode.CorruptImageError(
      f'{name} cannot be decoded ({error}): repair or remove it, or set'
      " config.data.on_corrupt='skip'")
