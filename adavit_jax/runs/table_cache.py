"""Keeps parts of a long computation on disk until another one begins."""

import hashlib
import zipfile

from absl import logging
from etils import epath
import jax
import numpy as np


class TableCache:
  """Parts of one computation, each a tuple of arrays.

  Files of another computation of the same name are removed.
  """

  def __init__(self, workdir, name, inputs, *, enabled=True):
    """Finds the parts that are on disk.

    Args:
      workdir: directory of the run.
      name: of the computation; files are WORKDIR/table/NAME-DIGEST-PART.npz.
      inputs: pytree of all arrays that the parts depend on.
      enabled: whether anything is read or written.
    """
    self._enabled = enabled
    if not enabled:
      return
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    self._directory = epath.Path(workdir) / 'table'
    self._prefix = f'{name}-{digest.hexdigest()[:16]}-'
    self._directory.mkdir(parents=True, exist_ok=True)
    for path in self._directory.glob(f'{name}-*'):
      if not path.name.startswith(self._prefix):
        path.unlink()

  def get(self, part, compute):
    """Returns a part: from disk if it is there, else computed and written.

    Args:
      part: number of the part.
      compute: function without arguments that returns a tuple of arrays.
    """
    if not self._enabled:
      return compute()
    path = self._directory / f'{self._prefix}{part}.npz'
    if path.exists():
      try:
        with path.open('rb') as file, np.load(file) as arrays:
          return tuple(arrays[f'arr_{i}'] for i in range(len(arrays.files)))
      except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logging.warning('%s is damaged and is computed again: %s', path, error)
    arrays = compute()
    # Renamed when it is complete, so that a kill leaves no half of a part.
    unfinished = self._directory / f'{path.name}.tmp'
    try:
      with unfinished.open('wb') as file:
        np.savez(file, *arrays)
      unfinished.replace(path)
    except OSError as error:  # of the disk; a resumed run computes it again
      logging.warning('%s is not kept: %s', path, error)
      unfinished.unlink(missing_ok=True)
    return arrays
