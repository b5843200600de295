"""A split that decodes its images on access."""

from absl import logging
import numpy as np

from adavit_jax.data import decode
from adavit_jax.data import encoded as encoded_lib


class LazySplit:
  """Rows [n] of an encoded set, as a split.

  Labels are known before images are read, so a corrupt image cannot be left
  out. With on_corrupt='skip' it is replaced by the next readable image of its
  class, with a warning that names both.
  """

  lazy = True

  def __init__(
      self,
      encoded: encoded_lib.EncodedImages,
      rows: np.ndarray,
      labels: np.ndarray,
      *,
      size: int,
      interpolation: str,
      on_corrupt: str,
  ):
    self._encoded = encoded
    self._rows = np.asarray(rows, np.int64)
    self.labels = np.asarray(labels, np.int32)
    self.meta = {}
    self._size = size
    self._interpolation = interpolation
    self._on_corrupt = on_corrupt
    self._pool = encoded_lib.decoder_pool()

  def __len__(self) -> int:
    return len(self.labels)

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [b, H, W, C] for int indices [b].

    Raises:
      CorruptImageError: if an image cannot be decoded and on_corrupt='error',
        or no image of its class can be decoded.
    """
    indices = np.asarray(indices)
    shape = (self._size, self._size, self._encoded.channels)
    batch = np.empty((len(indices), *shape), np.uint8)
    for place, image in enumerate(self._decode(self._rows[indices])):
      if isinstance(image, decode.CorruptImageError):
        image = self._replacement(int(indices[place]), image)
      batch[place] = image
    return batch

  def _decode(self, rows):
    decoded = encoded_lib.decode_rows(
        self._encoded, rows.tolist(), self._pool, size=self._size,
        interpolation=self._interpolation)
    return [image for image, _ in decoded]

  def _replacement(
      self, index: int, error: decode.CorruptImageError
  ) -> np.ndarray:
    name = self._encoded.name(int(self._rows[index]))
    if self._on_corrupt == 'error':
      raise encoded_lib.refusal(name, error)
    peers = np.flatnonzero(self.labels == self.labels[index])
    for peer in np.roll(peers, -np.searchsorted(peers, index))[1:]:
      image, = self._decode(self._rows[peer:peer + 1])
      if not isinstance(image, decode.CorruptImageError):
        logging.warning(
            '%s cannot be decoded (%s): replaced by %s.',
            name, error, self._encoded.name(int(self._rows[peer])))
        return image
    raise encoded_lib.refusal(name, error)
