"""Packs image sets into array_record shards, and compares them again."""

from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from typing import NamedTuple

from absl import logging
from etils import epath
import numpy as np

from adavit_jax.data import data_config
from adavit_jax.data import decode
from adavit_jax.data import encoded as encoded_lib
from adavit_jax.data import folder
from adavit_jax.data import lazy_split
from adavit_jax.data import packed_index
from adavit_jax.data import splits
from adavit_jax.data import tfds

SHARD_IMAGES = 1024
_CHUNK = 16  # images that a thread reads at a time
_SAMPLE, _SAMPLE_SIZE = 2048, 224
# Random access needs groups of one record; JPEGs do not get smaller.
_WRITER = 'group_size:1,uncompressed'


class Source(NamedTuple):
  """What is packed.

  Attributes:
    sets: the encoded images of 'train' and 'test'.
    class_names: K names.
    mean: per channel, in 0..1; None to measure it.
    std: per channel, in 0..1; None to measure it.
  """
  sets: dict[str, encoded_lib.EncodedImages]
  class_names: tuple[str, ...]
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None


def source(name: str, data_dir: str = '') -> Source:
  """Opens a folder or 'tfds:NAME'.

  Raises:
    ValueError: if it lacks a split, or the layout is another.
  """
  config = data_config.default_config()
  config.name, config.data_dir = 'folder', name
  if name.startswith('tfds:'):
    config.name, config.data_dir = name, data_dir
    train, test, class_names = tfds.labeled(config)
    return Source(dict(train=train, test=test), class_names)
  train, test = folder.files(config)
  return Source(dict(train=train, test=test), train.class_names,
                folder.IMAGENET_MEAN, folder.IMAGENET_STD)


def pack(
    found: Source, dest: str | os.PathLike, *, shard_images: int = SHARD_IMAGES
) -> packed_index.Index:
  """Packs a source into a directory, or goes on with it.

  Args:
    found: from `source`.
    dest: the directory.
    shard_images: images in a shard.

  Returns:
    The index.

  Raises:
    CorruptImageError: if a file cannot be read; whether it can be decoded is
      not tried.
    ValueError: if the directory is for another set.
  """
  dest = pathlib.Path(dest).expanduser()
  dest.mkdir(parents=True, exist_ok=True)
  labels = {split: encoded.labels() for split, encoded in found.sets.items()}
  _claim(dest, found, labels, shard_images)
  writer = _Writer(dest, shard_images)
  shards = {split: writer.run(split, encoded)
            for split, encoded in found.sets.items()}
  for split, values in labels.items():
    np.save(dest / packed_index.labels_name(split), values)
  train = found.sets['train']
  mean, std = (found.mean, found.std) if found.mean else _stats(
      train, labels['train'])
  index = packed_index.Index(
      tuple(found.class_names), train.channels, tuple(mean), tuple(std), shards)
  index.write(dest)
  logging.info('%s is complete: %s.', dest, ', '.join(
      f'{len(values):,} {split} images' for split, values in labels.items()))
  return index


def check(dest: str | os.PathLike) -> None:
  """Compares every shard of a packed set with its checksum.

  Raises:
    ValueError: naming the first shard that differs.
  """
  dest = epath.Path(dest).expanduser()
  index, _ = packed_index.read(dest)
  for split, shards in index.shards.items():
    packed_index.read_labels(dest, split, sum(s.images for s in shards))
    for shard in _shown(shards, f'Shards of {split}'):
      shard.check(dest)
      if packed_index.digest(dest / shard.name) != shard.blake2b:
        raise ValueError(
            f'the shard {dest / shard.name} is damaged: its checksum differs;'
            ' remove it and pack the set again, which makes what is missing')


def _claim(dest, found, labels, shard_images):
  """Refuses a directory for another set, else says what it is for."""
  plan = dict(
      shard_images=shard_images, class_names=list(found.class_names),
      labels={split: hashlib.sha256(values.tobytes()).hexdigest()
              for split, values in labels.items()})
  path = dest / 'plan.json'
  if path.exists():
    if json.loads(path.read_text()) != plan:
      raise ValueError(
          f'{dest} is for another set, or SOURCE has changed since: pack into '
          'an empty directory')
  elif any(dest.iterdir()):
    raise ValueError(f'DEST={dest} is not empty: give a new directory')
  else:
    packed_index.write_json(path, plan)


class _Writer:
  """Writes the shards that are missing."""

  def __init__(self, dest: pathlib.Path, shard_images: int):
    self._dest, self._shard_images = dest, shard_images
    self._log = dest / 'done.jsonl'  # a line for each shard
    self._done = {}
    if self._log.exists():
      for line in self._log.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a kill may cut the last one
          shard = packed_index.Shard(**json.loads(line))
          self._done[shard.name] = shard

  def run(
      self, split: str, encoded: encoded_lib.EncodedImages
  ) -> tuple[packed_index.Shard, ...]:
    """Writes the missing shards of a split; returns all of its shards."""
    starts = range(0, len(encoded), self._shard_images)
    with futures.ThreadPoolExecutor(16) as pool:
      return tuple(
          self._shard(
              f'{split}-{i:05d}-of-{len(starts):05d}.array_record', encoded,
              range(start, min(start + self._shard_images, len(encoded))), pool)
          for i, start in enumerate(_shown(starts, f'Shards of {split}')))

  def _shard(self, name, encoded, rows, pool):
    if name in self._done:
      try:
        self._done[name].check(epath.Path(self._dest))
        return self._done[name]
      except ValueError as error:
        logging.warning('%s', error)
    path = self._dest / name
    partial = path.with_name(path.name + '.partial')
    _write(partial, encoded, rows, pool)
    shard = packed_index.Shard(
        name, len(rows), partial.stat().st_size, packed_index.digest(partial))
    os.replace(partial, path)
    with self._log.open('a') as log:
      log.write(json.dumps(dataclasses.asdict(shard)) + '\n')
    return shard


def _write(path, encoded, rows, pool):
  """Writes the images of some rows to a file of records."""
  from array_record.python import array_record_module  # not on Windows

  def read(chunk):
    return list(zip(chunk, encoded.read(chunk)))

  writer = array_record_module.ArrayRecordWriter(str(path), _WRITER)
  chunks = [rows[i:i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
  for records in pool.map(read, chunks):
    for row, (data, _) in records:
      if isinstance(data, decode.CorruptImageError):
        raise decode.CorruptImageError(
            f'{encoded.name(row)} cannot be read ({data}): repair it, or remove'
            ' it and pack into a new directory') from data
      writer.write(data)
  writer.close()
  with open(path, 'rb') as file:
    os.fsync(file.fileno())


def _stats(encoded, labels):
  """Mean and standard deviation per channel of a sample."""
  sample = lazy_split.LazySplit(
      encoded, np.arange(len(encoded)), labels, size=_SAMPLE_SIZE,
      interpolation='bicubic', on_corrupt='skip')
  return splits.channel_stats(sample, sample=_SAMPLE)


def _shown(items: Sequence, what: str):
  """Yields items, and logs how many are done and when all will be."""
  start = shown = time.monotonic()
  for done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - shown > 5 or done == len(items):
      shown = now
      logging.info('%s: %d of %d, %.0f s left.', what, done, len(items),
                   (now - start) / done * (len(items) - done))
