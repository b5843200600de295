"""Packed sets: array_record shards that `adavit_jax.data.pack` wrote."""

from collections.abc import Sequence
from concurrent import futures
import functools
import pathlib
from typing import NamedTuple

from absl import logging
from etils import epath
import numpy as np

from adavit_jax import paths
from adavit_jax.data import cache
from adavit_jax.data import decode
from adavit_jax.data import encoded_split
from adavit_jax.data import packed_index
from adavit_jax.data import splits

_COPIES = 16  # files that are checked or copied at a time
_OTHER_FILES = 256  # that a process may have open beside its shards


class _File(NamedTuple):
  """A whole shard; with its length, it need not be opened to be counted."""
  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Shards:
  """One split of a packed set: `EncodedImages` that are not cached."""

  def __init__(
      self, directory: epath.Path, split: str, index: packed_index.Index):
    """Reads the labels.

    Args:
      directory: of the set.
      split: 'train' or 'test'.
      index: of the set.

    Raises:
      ValueError: if the labels cannot be read.
    """
    self.channels = index.channels
    self._directory, self._shards = directory, index.shards[split]
    self._ends = np.cumsum([shard.images for shard in self._shards])
    self._labels = packed_index.read_labels(
        directory, split, int(self._ends[-1]))

  def __getstate__(self):
    return {name: value for name, value in vars(self).items()
            if name != '_records'}  # opened again in another process

  def __len__(self) -> int:
    return len(self._labels)

  def name(self, index: int) -> str:
    """Returns the place of the image in its shard, and the shard."""
    i = int(np.searchsorted(self._ends, index, 'right'))
    place = index - int(self._ends[i]) + self._shards[i].images
    return f'Image {place} of {self._directory / self._shards[i].name}'

  def labels(self) -> np.ndarray:
    """Returns int32 [n]."""
    return self._labels

  def read(
      self, indices: Sequence[int]
  ) -> list[tuple[bytes | decode.CorruptImageError, int]]:
    """Returns the bytes, or why they cannot be read, and label of each image.
    """
    return [(self._read(i), int(self._labels[i])) for i in indices]

  def _read(self, index):
    try:
      return self._records[index]
    except (RuntimeError, ValueError, OSError) as error:  # checksums of chunks
      return decode.CorruptImageError(
          f'the shard is damaged: {str(error)[:200]}')

  @functools.cached_property
  def _records(self):
    from array_record.python import array_record_data_source  # not on Windows

    return array_record_data_source.ArrayRecordDataSource([
        _File(str(self._directory / shard.name), 0, shard.images, shard.images)
        for shard in self._shards])


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the packed set in config.data.data_dir.

  Of an address such as gs://BUCKET/SET, the files are first copied to the cache
  directory of this machine, since every host reads from all shards.

  Raises:
    ValueError: if the set is incomplete; the message names the shard. Or if a
      process may not have all shards open.
  """
  if not config_data.data_dir:
    raise ValueError(
        "config.data.name='packed' needs config.data.data_dir: the directory"
        ' that python -m adavit_jax.data.pack SOURCE DEST wrote')
  directory = epath.Path(paths.expanded(
      config_data.data_dir, 'config.data.data_dir'))
  index, digest = packed_index.read(directory)
  _allow_open(sum(map(len, index.shards.values())))
  if '://' in config_data.data_dir:
    directory = _copied(
        directory, index, cache.cache_root(config_data.cache_dir)
        / f'{directory.name}-{digest[:20]}')
  _each(lambda shard: shard.check(directory), index)
  train, holdout = encoded_split.lazy_parts(
      Shards(directory, 'train', index), config_data,
      holdout=config_data.holdout, seed=seed)
  test, _ = encoded_split.lazy_parts(
      Shards(directory, 'test', index), config_data)
  return splits.Dataset(
      train, holdout, test, num_classes=len(index.class_names),
      class_names=index.class_names, channels=index.channels,
      image_size=config_data.image_size, mean=index.mean, std=index.std)


def _allow_open(num: int) -> None:
  """Lets this process, and workers that it starts, have all shards open.

  Each is opened at its first image and stays open; the usual limit of 1024
  files is below the number of shards of ImageNet.
  """
  import resource  # not on Windows

  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = num + _OTHER_FILES
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  except (OSError, ValueError) as error:
    raise ValueError(
        f'the packed set has {num} shards, and this process may only have'
        f' {hard} files open: raise the limit to {wanted} with ulimit -n'
        ) from error


def _copied(source, index, target: pathlib.Path) -> epath.Path:
  """Copies what the target lacks, and returns it."""
  target.mkdir(parents=True, exist_ok=True)

  def copy(name, size=None):
    path = target / name
    if not path.exists() or path.stat().st_size != size:
      with cache.as_a_whole(path) as partial:
        (source / name).copy(partial)

  for split in index.shards:
    copy(packed_index.labels_name(split))
  size = sum(shard.size for shards in index.shards.values() for shard in shards)
  logging.info('%s: %.1f GB are copied to %s, unless they are there.', source,
               size / 1e9, target)
  _each(lambda shard: copy(shard.name, shard.size), index)
  return epath.Path(target)


def _each(function, index):
  """Calls a function with all shards, and raises its first error."""
  with futures.ThreadPoolExecutor(_COPIES) as pool:
    for shards in index.shards.values():
      for _ in pool.map(function, shards):
        pass
