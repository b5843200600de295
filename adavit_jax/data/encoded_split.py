"""Encoded sets as splits: small ones are decoded once and cached."""

import collections
import time

from absl import logging
import numpy as np

from adavit_jax.data import cache
from adavit_jax.data import data_config as config_lib
from adavit_jax.data import decode
from adavit_jax.data import encoded as encoded_lib
from adavit_jax.data import lazy_split
from adavit_jax.data import splits

# Larger decoded sets are not kept in memory but decoded lazily.
MAX_BYTES = 2 << 30
_CHUNK = 512


def load_split(
    encoded: encoded_lib.EncodedImages,
    config_data,
    *,
    holdout: float = 0.0,
    seed: int = 0,
) -> tuple[splits.Split, splits.Split]:
  """Splits an encoded set in two; the second part is held out.

  Args:
    encoded: the images.
    config_data: `config.data`; uses load_size, crop, interpolation, on_corrupt
      and cache_dir.
    holdout: fraction of the images in the second part, stratified by class.
    seed: seed of the held-out images.

  Raises:
    CorruptImageError: if an image cannot be decoded and on_corrupt='error'.
    ValueError: if no image of a class can be decoded.
  """
  size, decoding = config_lib.load_size(config_data), _decoding(config_data)
  if len(encoded) * size**2 * encoded.channels > MAX_BYTES:
    return lazy_parts(encoded, config_data, holdout=holdout, seed=seed)
  with encoded_lib.decoder_pool() as pool:
    content = encoded.digest(pool)
  key = dict(
      encoded.key, content=content, channels=encoded.channels, **decoding)
  records = cache.cached(
      config_data.cache_dir, f'{encoded.label}-{size}', key,
      lambda: decode_all(encoded, **decoding))
  labels = np.array(records['label'])
  return tuple(
      splits.ArraySplit(records['image'], labels[rows], rows=rows)
      for rows in _parts(labels, holdout, seed))


def lazy_parts(
    encoded: encoded_lib.EncodedImages,
    config_data,
    *,
    holdout: float = 0.0,
    seed: int = 0,
) -> tuple[lazy_split.LazySplit, lazy_split.LazySplit]:
  """Splits an encoded set in two, as `load_split`; neither is held in memory.
  """
  labels = encoded.labels()
  return tuple(
      lazy_split.LazySplit(
          encoded, rows, labels[rows], **_decoding(config_data))
      for rows in _parts(labels, holdout, seed))


def _parts(labels, holdout, seed):
  return splits.stratified_split(
      labels, round(holdout * len(labels)), seed=seed)


def _decoding(config_data):
  return dict(
      size=config_lib.load_size(config_data),
      interpolation=config_lib.interpolation(config_data),
      on_corrupt=config_data.on_corrupt)


def decode_all(
    encoded: encoded_lib.EncodedImages, *, size: int, interpolation: str,
    on_corrupt: str,
) -> np.ndarray:
  """Decodes a whole set.

  Args:
    encoded: n images.
    size: output side in pixels.
    interpolation: one of `data_config.INTERPOLATIONS`.
    on_corrupt: 'error', or 'skip' to leave out undecodable images.

  Returns:
    A structured array [n or fewer] with the fields image, uint8
    [size, size, C], and label, int32.

  Raises:
    CorruptImageError: if an image cannot be decoded and on_corrupt='error'.
    ValueError: if no image of a class can be decoded.
  """
  n = len(encoded)
  shape = (size, size, encoded.channels)
  records = np.empty(n, [('image', 'u1', shape), ('label', '<i4')])
  kept, shown = 0, time.monotonic()
  lost = collections.defaultdict(list)  # names, by label
  logging.info('Decoding the %d images of %s.', n, encoded.label)
  with encoded_lib.decoder_pool() as pool:
    for start in range(0, n, _CHUNK):
      rows = range(start, min(start + _CHUNK, n))
      decoded = encoded_lib.decode_rows(
          encoded, rows, pool, size=size, interpolation=interpolation)
      for row, (image, label) in zip(rows, decoded):
        if isinstance(image, decode.CorruptImageError):
          if on_corrupt == 'error':
            raise encoded_lib.refusal(encoded.name(row), image)
          logging.warning(
              '%s cannot be decoded (%s): left out.', encoded.name(row), image)
          lost[label].append(encoded.name(row))
          continue
        records['image'][kept], records['label'][kept] = image, label
        kept += 1
      if time.monotonic() - shown > 5:
        shown = time.monotonic()
        logging.info('Decoded %d of %d images.', rows[-1] + 1, n)
  if kept < n:
    logging.warning(
        '%d of the %d images of %s are left out, since they cannot be decoded.',
        n - kept, n, encoded.label)
  for label in sorted(lost.keys() - set(records['label'][:kept].tolist())):
    raise ValueError(
        f'none of the {len(lost[label])} images of class {label} of'
        f' {encoded.label} can be decoded, {lost[label][0]} for example: check'
        ' that they are image files, or remove the class')
  return records[:kept]
