"""Image files with their classes, read and compared."""

import collections
from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
import pathlib
import time

from absl import logging
import numpy as np

from adavit_jax.data import decode
from adavit_jax.data import image_files


class ImageFiles:
  """Image files with their classes, an `EncodedImages`."""

  channels = 3
  key = {'source': 'folder'}

  def __init__(self, directory: pathlib.Path, files: Sequence[str],
               labels: Sequence[int], class_names: Sequence[str]):
    """Stores them.

    Args:
      directory: of the split, for its name.
      files: n paths.
      labels: n classes in 0..K-1.
      class_names: K names.
    """
    self.label = f'{directory.parent.name}-{directory.name}'
    self._directory = directory
    self.class_names = tuple(class_names)
    self._files = list(files)
    self._labels = np.asarray(labels, np.int32)

  @classmethod
  def in_class_folders(
      cls, directory: pathlib.Path, class_names: Sequence[str] | None = None
  ):
    """Lists the files below directory/CLASS, sorted.

    It logs how many others there are.

    Args:
      directory: has one folder per class, which is searched recursively.
      class_names: the classes in order; None takes the names of the folders.

    Raises:
      ValueError: if the directory or the class folders are missing, or a class
        folder is empty or not in `class_names`.
    """
    if wrong := misfit(directory, class_names):
      raise ValueError(
          f'{directory} {wrong}: put the images of each class into'
          f' {directory}/CLASS/')
    left_out = collections.Counter()
    folders = image_files.class_folders(directory, left_out)
    if class_names is None:
      class_names = folders
    files, labels = [], []
    for label, name in enumerate(class_names):
      if name not in folders:
        continue
      of_class = image_files.find(directory / name, left_out)
      if not of_class:
        raise ValueError(
            f'the class folder {directory / name} holds no image: add images or'
            f' remove it; image files end in {sorted(image_files.endings())}')
      files += of_class
      labels += [label] * len(of_class)
    image_files.warn(directory, left_out)
    return cls(directory, files, labels, class_names)

  def __len__(self) -> int:
    return len(self._files)

  def name(self, index: int) -> str:
    """Returns the file's path."""
    return self._files[index]

  def labels(self) -> np.ndarray:
    """Returns int32 [n]."""
    return self._labels

  def names_digest(self) -> str:
    """Returns a digest of the names below the directory, in order."""
    start = len(os.path.join(self._directory, ''))
    names = '\0'.join(path[start:].replace(os.sep, '/') for path in self._files)
    return hashlib.sha256(os.fsencode(names)).hexdigest()[:16]

  def read(
      self, indices: Sequence[int]
  ) -> list[tuple[bytes | decode.CorruptImageError, int]]:
    """Returns the bytes, or why they cannot be read, and label of each file.
    """
    return [(_read_bytes(self._files[i]), int(self._labels[i]))
            for i in indices]

  def digest(self, pool: futures.Executor) -> str:
    """Returns a digest of the images' bytes and labels, in order."""
    digest = hashlib.sha256()
    shown = time.monotonic()
    contents = pool.map(_digest, self._files)
    for i, (content, label) in enumerate(zip(contents, self._labels.tolist())):
      digest.update(content + b'%d' % label)
      if time.monotonic() - shown > 5:
        shown = time.monotonic()
        logging.info('Read %d of %d files, to see whether they are cached.',
                     i + 1, len(self))
    return digest.hexdigest()


def misfit(
    directory: pathlib.Path, class_names: Sequence[str] | None
) -> str:
  """Returns what is wrong with the class folders; '' if nothing is."""
  if not directory.is_dir():
    return 'does not exist'
  folders = image_files.class_folders(directory)
  if not folders:
    return 'holds no class folder'
  unknown = set(folders) - set(folders if class_names is None else class_names)
  if unknown:
    return f'holds classes that the training images lack: {sorted(unknown)}'
  return ''


def _read_bytes(path: str) -> bytes | decode.CorruptImageError:
  for wait in (0.1, 1., None):  # errors of a network may pass
    try:
      with open(path, 'rb') as file:
        return file.read()
    except OSError as error:
      if wait is None:
        return decode.CorruptImageError(
            f'{type(error).__name__}: {error.strerror}')
    time.sleep(wait)


def _digest(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'blake2b').digest()
  except OSError:
    return b'unreadable'
