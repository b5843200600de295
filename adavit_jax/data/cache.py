"""Arrays on disk that cost too much to build twice."""

from collections.abc import Callable, Mapping
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

# Raise it whenever the same key would give other content than before.
FORMAT = 1

# Seconds after which a file that is still partial is one of a killed process.
_ABANDONED = 24 * 3600


def cache_root(cache_dir: str = '') -> pathlib.Path:
  """Returns `cache_dir`, else $ADAVIT_CACHE, else ~/.cache/adavit_jax.

  Raises:
    ValueError: it is an address such as 'gs://...'.
  """
  chosen = cache_dir or os.environ.get('ADAVIT_CACHE') or '~/.cache/adavit_jax'
  if '://' in chosen:
    name = 'config.data.cache_dir' if cache_dir else 'ADAVIT_CACHE'
    raise ValueError(
        f'{name}={chosen!r} is not a local directory: the cache is mapped into'
        ' memory, so give a directory on this machine.'
    )
  return pathlib.Path(chosen).expanduser()


def cache_path(
    cache_dir: str, label: str, key: Mapping[str, Any]
) -> pathlib.Path:
  """Returns the file for `key`; `label` only makes its name readable.

  Args:
    cache_dir: as in `cache_root`.
    label: any text, e.g. 'cifar10-train'.
    key: JSON-able values, all that determines the content.
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
  """Returns `build()`, or what an earlier call with the same key stored.

  The file appears whole or not at all. One that cannot be read, for instance
  because it is cut short, is built again. Where the directory cannot be
  written the array is returned all the same, with a warning.

  Args:
    cache_dir: as in `cache_root`.
    label: makes the file's name readable.
    key: JSON-able values, all that determines the content.
    build: returns the array; it may be structured, without Python objects.

  Returns:
    The array: read-only and memory-mapped where it was stored already.
  """
  path = cache_path(cache_dir, label, key)
  try:
    # A memory map checks the length in the header against the file's, so a
    # truncated file is refused here and not when its last rows are read.
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except FileNotFoundError:
    pass
  except (OSError, ValueError, EOFError, SyntaxError) as error:
    logging.warning('Cache file %s is unusable (%s): rebuilt.', path, error)
  array = build()
  try:
    _store(path, array)
  except OSError as error:
    logging.warning(
        'Cannot write the cache file %s (%s): the data will be built again at'
        ' the next start. Set config.data.cache_dir or ADAVIT_CACHE.',
        path, error,
    )
  return array


def _store(path: pathlib.Path, array: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  for old in path.parent.glob(f'{path.stem}.*.partial'):
    # It may be another user's, or go while it is looked at.
    with contextlib.suppress(OSError):
      if old.stat().st_mtime < time.time() - _ABANDONED:
        old.unlink()
  # Not tempfile, whose files only their owner may read: caches are shared.
  partial = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.partial')
  try:
    with open(partial, 'xb') as file:
      np.save(file, array, allow_pickle=False)
      file.flush()
      # Without it a power cut can leave the new name on an empty file.
      os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
