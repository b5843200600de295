"""A disk cache for arrays that are slow to build."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any
import uuid

from absl import logging
import numpy as np

from adavit_jax import paths

# Increment whenever the content for an unchanged key changes.
FORMAT = 1

# Age in seconds from which a partial file belongs to a killed process.
_ABANDONED = 24 * 3600


def cache_root(cache_dir: str = '') -> pathlib.Path:
  """Returns `cache_dir`, else $ADAVIT_CACHE, else ~/.cache/adavit_jax.

  Raises:
    ValueError: if it is a URL such as 'gs://...', or in no directory.
  """
  chosen = cache_dir or os.environ.get('ADAVIT_CACHE') or '~/.cache/adavit_jax'
  name = 'config.data.cache_dir' if cache_dir else 'ADAVIT_CACHE'
  if '://' in chosen:
    raise ValueError(
        f'{name}={chosen!r} is not a local directory: the cache is'
        ' memory-mapped, so give a directory on this machine')
  root = pathlib.Path(paths.expanded(chosen, name))
  there = next(path for path in (root, *root.parents, '.')
               if os.path.exists(path))
  if not os.path.isdir(there):
    raise ValueError(f'{name}={chosen!r} cannot be made: {there} is a file')
  return root


def cache_path(
    cache_dir: str, label: str, key: Mapping[str, Any]
) -> pathlib.Path:
  """Returns the path of the file for `key`.

  Args:
    cache_dir: see `cache_root`.
    label: any text for a readable file name, e.g. 'cifar10-train'.
    key: JSON-serializable values that determine the content.
  """
  text = json.dumps({'format': FORMAT, **key}, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:20]
  readable = re.sub(r'[^\w.-]+', '-', label)
  return cache_root(cache_dir) / f'{readable}-{digest}.npy'


def cached(
    cache_dir: str,
    label: str,
    key: Mapping[str, Any],
    build: Callable[[], np.ndarray],
) -> np.ndarray:
  """Returns the array stored for `key`, or builds and stores it.

  Files are written atomically. A file that cannot be read, for instance because
  it is truncated, is rebuilt. If the directory is not writable, the array is
  returned with a warning.

  Args:
    cache_dir: see `cache_root`.
    label: any text for a readable file name.
    key: JSON-serializable values that determine the content.
    build: returns the array, which may be structured but holds no Python
      objects.

  Returns:
    The array, read-only and memory-mapped if it could be stored.
  """
  path = cache_path(cache_dir, label, key)
  try:
    # Memory-mapping checks the file size against the header, so a truncated
    # file fails here and not when its last rows are read.
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except FileNotFoundError:
    pass
  except (OSError, ValueError, EOFError, SyntaxError) as error:
    logging.warning('Cache file %s is unusable (%s): rebuilt.', path, error)
  array = build()
  try:
    _store(path, array)
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except OSError as error:
    logging.warning(
        'Cannot write the cache file %s (%s): the data will be built again at'
        ' the next start. Set config.data.cache_dir or ADAVIT_CACHE.',
        path, error)
  return array


def _store(path: pathlib.Path, array: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with as_a_whole(path) as partial, open(partial, 'xb') as file:
    np.save(file, array, allow_pickle=False)
    file.flush()
    # Otherwise a power failure can leave an empty file under the new name.
    os.fsync(file.fileno())


@contextlib.contextmanager
def as_a_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new path to write to, which becomes `path` if all goes well.

  Several processes may write the same file at once.
  """
  for old in path.parent.glob(f'{path.stem}.*.partial'):
    # It may belong to another user, or be deleted meanwhile.
    with contextlib.suppress(OSError):
      if old.stat().st_mtime < time.time() - _ABANDONED:
        old.unlink()
  # Not tempfile: caches are shared, and its files are readable by the owner
  # only.
  partial = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.partial')
  try:
    yield partial
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
