"""The index of a packed set: what lies beside its shards.

A packed set is a directory:

  index.json                           `Index`, written last
  SPLIT-labels.npy                     int32 [n]
  SPLIT-00000-of-00004.array_record    the bytes of the images, in order
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib

from etils import epath
import numpy as np

from adavit_jax import paths

NAME = 'index.json'
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of records.

  Attributes:
    name: of the file in the directory.
    images: number of its records.
    size: of the file, in bytes.
    blake2b: digest of the file.
  """
  name: str
  images: int
  size: int
  blake2b: str

  def check(self, directory: epath.Path) -> None:
    """Raises ValueError if the file is missing or of another size."""
    path = directory / self.name
    size = path.stat().length if path.exists() else None
    if size != self.size:
      raise ValueError(
          f'the shard {path} ' + (
              f'has {size} bytes instead of {self.size}'
              if size is not None else 'is missing')
          + ': copy it again, or remove it and pack the set again, which makes'
          ' what is missing')


@dataclasses.dataclass(frozen=True)
class Index:
  """What a packed set holds.

  Attributes:
    class_names: K names.
    channels: 1 or 3.
    mean: per channel, in 0..1.
    std: per channel, in 0..1.
    shards: of each split, 'train' and 'test', in order.
  """
  class_names: tuple[str, ...]
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  shards: Mapping[str, Sequence[Shard]]

  def write(self, directory: pathlib.Path) -> None:
    """Writes the index file."""
    write_json(directory / NAME, {
        'format': _FORMAT, **dataclasses.asdict(self)})


def read(directory: epath.Path) -> tuple[Index, str]:
  """Reads the index of a packed set.

  Returns:
    The index, and its digest, which tells the set from all others.

  Raises:
    ValueError: if the index is missing, damaged or of another version.
  """
  path = directory / NAME
  if not path.exists():
    raise ValueError(
        f'{path} is missing: config.data.data_dir must be a directory that'
        ' python -m adavit_jax.data.pack SOURCE DEST has finished')
  text = path.read_text()
  try:
    return _parsed(text), hashlib.sha256(text.encode()).hexdigest()
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path} cannot be read ({type(error).__name__}: {error}): pack the set'
        ' again with this version') from error


def _parsed(text: str) -> Index:
  fields = json.loads(text)
  if (found := fields.pop('format', None)) != _FORMAT:
    raise ValueError(f'it has format {found}, not {_FORMAT}')
  shards = {split: tuple(Shard(**shard) for shard in shards)
            for split, shards in fields.pop('shards').items()}
  lists = {name: tuple(fields[name]) for name in ('class_names', 'mean', 'std')}
  return Index(channels=fields['channels'], shards=shards, **lists)


def labels_name(split: str) -> str:
  """Returns the name of the file of labels of a split."""
  return f'{split}-labels.npy'


def read_labels(directory: epath.Path, split: str, num: int) -> np.ndarray:
  """Returns int32 [num].

  Raises:
    ValueError: if the file is missing or damaged.
  """
  path = directory / labels_name(split)
  try:
    labels = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f'{path} cannot be read ({error}): pack the set '
                     'again') from error
  if labels.shape != (num,):
    raise ValueError(f'{path} has {len(labels)} labels for {num} images: pack '
                     'the set again')
  return labels.astype(np.int32)


def write_json(path: pathlib.Path, value) -> None:
  """Writes a file of JSON as a whole or not at all."""
  paths.write({path: json.dumps(value, indent=1)})


def digest(path: pathlib.Path) -> str:
  """Returns the digest of a file for `Shard.blake2b`."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(
        file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
