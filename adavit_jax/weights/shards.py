"""Checkpoints in several files, which a JSON index lists."""

import json
import pathlib
import re
from typing import NamedTuple

_INDEX = re.compile(r'.+\.index(\.\w+)?\.json')
_SHARD = re.compile(r'(.+-)(\d+)(-of-)(\d+)(\.\w+)')


class Shards(NamedTuple):
  """The files of a checkpoint.

  Attributes:
    files: their paths, in order.
    where: {tensor: name of its file}; None without an index.
  """
  files: tuple[pathlib.Path, ...]
  where: dict[str, str] | None


def is_index(path):
  """Whether a path is named like an index, e.g. model.safetensors.index.json.
  """
  return _INDEX.fullmatch(path.name) is not None


def find(path):
  """Finds the files that belong to a file.

  Args:
    path: an index, or a file that may be one of several.

  Returns:
    `Shards`, or None for a file that is not one of several.

  Raises:
    ValueError: if an index cannot be read, or a file is missing.
  """
  where = _where(path)
  names = {*(where or {}).values()}
  for name in (path.name, *sorted(names)):
    if match := _SHARD.fullmatch(name):
      start, number, of, total, end = match.groups()
      names.update(f'{start}{i + 1:0{len(number)}}{of}{total}{end}'
                   for i in range(int(total)))
  if not names:
    return None
  files = [path.parent / name for name in sorted(names)]
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    few = ', '.join(missing[:5])
    raise ValueError(
        f'{path} belongs to a checkpoint of {len(files)} shards and lacks '
        f'{len(missing)} of them ({few}{", ..." * (len(missing) > 5)}): put '
        f'them into {path.parent}')
  return Shards(tuple(files), where)


def _where(path):
  """The map of the index that is or lists a file; None without one."""
  if is_index(path):
    return _read(path)
  for index in sorted(path.parent.glob('*.index*.json')):
    # Another checkpoint's index beside this file may be damaged.
    if is_index(index) and path.name.encode() in index.read_bytes():
      where = _read(index)
      if path.name in where.values():
        return where
  return None


def _read(index):
  try:
    where = json.loads(index.read_bytes())['weight_map']
    names = {*where.values()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{index} has no weight_map that can be read ({type(error).__name__}: '
        f'{error}): fetch it again, or give a file of weights') from error
  if not names or not all(
      isinstance(name, str) and name == pathlib.PurePath(name).name
      for name in names):
    raise ValueError(f'{index}: its weight_map must name files beside it, not '
                     f'{sorted(map(str, names))[:3]}')
  return where


def join(path, shards, parts):
  """Joins the contents of the files.

  Args:
    path: path of the file that was given, for messages.
    shards: `Shards`.
    parts: (tensors, metadata) of each of its files.

  Returns:
    (tensors, metadata) of the checkpoint.

  Raises:
    ValueError: if the index lists tensors that the files lack, or two files
      hold a tensor and no index tells which counts.
  """
  tensors, metadata = {}, {}
  for file, (part, more) in zip(shards.files, parts):
    metadata = more | metadata
    for name, x in part.items():
      if (shards.where or {}).get(name, file.name) != file.name:
        continue
      if name in tensors:
        raise ValueError(f'{path}: several of its files hold {name}; give the '
                         f'index that lists them')
      tensors[name] = x
  lost = [name for name in shards.where or () if name not in tensors]
  if lost:
    raise ValueError(f'{path}: the index lists {len(lost)} tensors that its '
                     f'files do not hold ({", ".join(sorted(lost)[:5])}): '
                     f'fetch index and files again')
  return tensors, metadata
