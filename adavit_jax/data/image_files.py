"""Lists image files in class folders, and says what is left out."""

import collections
from collections.abc import Iterable
import functools
import os

from absl import logging
from PIL import Image

# Folders that systems put beside those of their users.
_SYSTEM = frozenset((
    '__macosx', '__pycache__', '@eadir', '#recycle', '#snapshot',
    '$recycle.bin', 'system volume information', 'lost+found',
))

# Pillow recognizes these, but needs other programs to decode them, or cannot.
_UNREADABLE = frozenset(('BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'))


@functools.cache
def endings() -> frozenset[str]:
  """Endings of the files that Pillow and its plug-ins decode, in lower case."""
  Image.init()
  return frozenset(
      ending for ending, form in Image.registered_extensions().items()
      if form in Image.OPEN and form not in _UNREADABLE)


def is_own(name: str) -> bool:
  """Whether a folder is the user's: not hidden, and not of the system."""
  return not name.startswith('.') and name.lower() not in _SYSTEM


def find(directory, left_out: collections.Counter) -> list[str]:
  """Returns the sorted paths of the images below a directory.

  An image has one of `endings`; a file without ending is opened to see. Hidden
  files and folders are no images, nor are folders of the system.

  Args:
    directory: searched recursively, also through links.
    left_out: counts what is left out, by its kind.
  """
  files, walked = [], set()
  for parent, folders, names in os.walk(directory, followlinks=True):
    # Links may form cycles.
    real = os.path.realpath(parent)
    if real in walked:
      folders.clear()
      continue
    walked.add(real)
    # Copies of images lie in .ipynb_checkpoints, thumbnails in @eaDir.
    folders[:] = sorted(filter(is_own, folders))
    for name in names:
      # macOS writes metadata to ._name.jpg beside name.jpg.
      if name.startswith('.'):
        continue
      path = os.path.join(parent, name)
      if kind := _other(path):
        left_out[kind] += 1
      else:
        files.append(path)
  return sorted(files)


def _other(path: str) -> str:
  """Returns the kind of a file that is no image; '' for an image."""
  ending = os.path.splitext(path)[1].lower()
  if not os.path.isfile(path):  # to open a named pipe would wait for ever
    return 'no regular file' if os.path.exists(path) else (
        'link to a missing file')
  if ending in endings():
    return ''
  if ending:
    return ending
  try:
    with Image.open(path) as image:
      return '' if image.format not in _UNREADABLE else 'no ending'
  except Exception:  # readers raise errors of any type
    return 'no ending'


def warn(directory, left_out: collections.Counter) -> None:
  """Logs in one line how many files of each kind were left out, if any."""
  if left_out:
    kinds = ', '.join(
        f'{num} ({kind})' for kind, num in sorted(left_out.items()))
    logging.warning(
        '%s: %d files are left out, since Pillow does not read them: %s.',
        directory, left_out.total(), kinds)


def class_folders(directory, left_out: collections.Counter | None = None
                  ) -> list[str]:
  """Returns the names of the class folders in a directory.

  Numbers are sorted as numbers, 2 before 10, other names as text.

  Args:
    directory: its path.
    left_out: counts the files beside the folders, by their kind; None to
      ignore them.

  Raises:
    ValueError: if a name is not UTF-8.
  """
  names = []
  for entry in os.scandir(directory):
    if entry.is_dir():
      if is_own(entry.name):
        names.append(entry.name)
    elif left_out is not None and not entry.name.startswith('.'):
      left_out['beside the class folders'] += 1
  _check_utf8(directory, names)
  if all(name.isdecimal() for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def _check_utf8(directory, names: Iterable[str]) -> None:
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
          f'the name of the class folder {os.fsencode(name)!r} in {directory}'
          ' is not UTF-8: rename it') from error
