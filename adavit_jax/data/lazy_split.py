"""A split that decodes its images on access."""

from collections.abc import Callable

from absl import logging
import numpy as np

from adavit_jax.data import crops as crops_lib
from adavit_jax.data import decode
from adavit_jax.data import encoded as encoded_lib


class LazySplit:
  """Rows [n] of an encoded set, as a split.

  Labels are known before images are read, so a corrupt image cannot be left
  out. With on_corrupt='skip' it is replaced by the next readable image of its
  class, with a warning that names both.

  Copies in other processes have threads of their own.
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

  def __getstate__(self):
    return {name: value for name, value in vars(self).items()
            if name != '_pool'}

  def __setstate__(self, state):
    vars(self).update(state)
    # In a worker process: one thread reads while the other decodes.
    self._pool = encoded_lib.decoder_pool(2)

  def __len__(self) -> int:
    return len(self.labels)

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [b, H, W, C] for int indices [b].

    Raises:
      CorruptImageError: if an image cannot be decoded and on_corrupt='error',
        or no image of its class can be decoded.
    """
    def function(_, data):
      return decode.decode_image(
          data, size=self._size, channels=self._encoded.channels,
          interpolation=self._interpolation)

    indices = np.asarray(indices)
    shape = (self._size, self._size, self._encoded.channels)
    batch = np.empty((len(indices), *shape), np.uint8)
    for place, image in enumerate(self._decoded(indices, function)):
      batch[place] = image
    return batch

  def crops(
      self,
      indices: np.ndarray,
      seeds: list[tuple[int, ...]],
      crop: crops_lib.Crop,
  ) -> np.ndarray:
    """Returns random crops, see `crops.random_crops`.

    Args:
      indices: int [b]. An image in adjacent places is decoded once.
      seeds: one for each place.
      crop: size S and smallest area.

    Returns:
      uint8 [b, S, S, C].

    Raises:
      CorruptImageError: as `images`.
    """
    indices = np.asarray(indices)
    starts = np.flatnonzero(np.diff(indices, prepend=-1))
    stops = np.append(starts[1:], len(indices))

    def function(place, data):
      return crops_lib.random_crops(
          data, seeds[starts[place]:stops[place]], crop,
          channels=self._encoded.channels, interpolation=self._interpolation)

    return np.concatenate(self._decoded(indices[starts], function))

  def _decoded(self, indices: np.ndarray, function: Callable) -> list:
    """Returns function(place, bytes) of images, or of what replaces them."""
    found = encoded_lib.map_records(
        function, self._encoded, self._rows[indices].tolist(), self._pool)
    return [
        self._replacement(int(indices[place]), result,
                          lambda _, data, place=place: function(place, data))
        if isinstance(result, decode.CorruptImageError) else result
        for place, (result, _) in enumerate(found)]

  def _replacement(
      self, index: int, error: decode.CorruptImageError, function: Callable):
    name = self._encoded.name(int(self._rows[index]))
    if self._on_corrupt == 'error':
      raise encoded_lib.refusal(name, error)
    peers = np.flatnonzero(self.labels == self.labels[index])
    for peer in np.roll(peers, -np.searchsorted(peers, index))[1:]:
      row = int(self._rows[peer])
      (result, _), = encoded_lib.map_records(
          function, self._encoded, [row], self._pool)
      if not isinstance(result, decode.CorruptImageError):
        logging.warning('%s cannot be decoded (%s): replaced by %s.', name,
                        error, self._encoded.name(row))
        return result
    raise encoded_lib.refusal(name, error)
