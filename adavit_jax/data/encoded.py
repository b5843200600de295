"""Sets of encoded image files, and the threads that decode them."""

from collections.abc import Sequence
from concurrent import futures
import os
from typing import Protocol

import numpy as np

from adavit_jax.data import decode


class EncodedImages(Protocol):
  """n encoded images of one split.

  Attributes:
    label: what the set is called, e.g. 'cifar10-train'.
    key: JSON-able values that determine the images and their labels.
    channels: 1 or 3.
  """

  label: str
  key: dict
  channels: int

  def __len__(self) -> int:
    ...

  def name(self, index: int) -> str:
    """Returns what to call an image in a message."""

  def labels(self) -> np.ndarray:
    """Returns int32 [n]; it may have to read everything."""

  def read(
      self, indices: Sequence[int], pool: futures.Executor
  ) -> list[tuple[bytes, int]]:
    """Returns the bytes and the label of each image."""


def decoder_pool() -> futures.ThreadPoolExecutor:
  """Returns threads to decode with: Pillow decodes outside the GIL."""
  return futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1))


def decode_rows(
    encoded: EncodedImages,
    rows: Sequence[int],
    pool: futures.Executor,
    *,
    size: int,
    interpolation: str,
) -> list[tuple[np.ndarray | decode.CorruptImageError, int]]:
  """Returns the image uint8 [H, W, C] of each row, and its label.

  In the place of an image that cannot be decoded stands what is wrong.
  """

  def attempt(record):
    data, label = record
    try:
      image = decode.decode_image(
          data, size=size, channels=encoded.channels,
          interpolation=interpolation,
      )
    except decode.CorruptImageError as error:
      return error, label
    return image, label

  return list(pool.map(attempt, encoded.read(rows, pool)))


def refusal(name: str, error: Exception) -> decode.CorruptImageError:
  """Returns the error that names a corrupt image and what to do about it."""
  return decode.CorruptImageError(
      f'{name} cannot be decoded ({error}). Repair or remove it, or set'
      " config.data.on_corrupt='skip'."
  )
