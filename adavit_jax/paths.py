"""Paths as users write them."""

import contextlib
import os

from etils import epath


def expanded(path, name) -> str:
  """Returns a path with ~ expanded; addresses such as gs://BUCKET/RUN stay.

  Args:
    path: a path or an address.
    name: what it is called in errors.

  Raises:
    ValueError: if it is empty, of an unknown user, or an address of a kind that
      cannot be opened.
  """
  path = os.fspath(path)
  if not path:
    raise ValueError(f"{name}='' is empty: give a path, '.' for the current "
                     f'directory')
  path = os.path.expanduser(path)
  if path.startswith('~'):
    raise ValueError(f'{name}={path!r}: there is no such user; for a file or '
                     f'directory of that name, give ./{path}')
  try:
    epath.Path(path)
  except KeyError as error:
    raise ValueError(f'{name}={path!r}: addresses {error.args[0]} cannot be '
                     f'opened; give a local path or gs://BUCKET/PATH'
                     ) from error
  return path


def is_special(path) -> bool:
  """Whether a path is of a pipe or a device, which might wait for ever."""
  return os.path.exists(path) and not (
      os.path.isfile(path) or os.path.isdir(path))


def write(contents) -> None:
  """Writes files, each as a whole, after all of them could be written.

  A kill leaves old files or new ones, and in a short moment some of each.

  Args:
    contents: {path: text or bytes}; a path may be an address.
  """
  partials = {}
  try:
    for path, content in contents.items():
      path = epath.Path(path)
      partial = partials[path] = path.with_name(f'{path.name}.partial')
      partial.write_bytes(
          content.encode() if isinstance(content, str) else content)
  except OSError:
    for partial in partials.values():
      with contextlib.suppress(OSError):
        partial.unlink()
    raise
  for path, partial in partials.items():
    partial.replace(path)


def to_write(path, name) -> epath.Path:
  """Returns the path of a file that can be written; makes its directory.

  Args:
    path: a path or an address; of an address it is not tried.
    name: what it is called in errors.

  Raises:
    ValueError: as of `expanded`, or if it is a directory or cannot be written.
  """
  path = epath.Path(expanded(path, name))
  if path.is_dir():
    raise ValueError(f'{name}={path} is a directory; give the path of a file')
  if is_special(path):
    raise ValueError(f'{name}={path} is a pipe or a device, not a file')
  if '://' in os.fspath(path):
    return path
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open('ab').close()
    if is_new:
      path.unlink()
  except OSError as error:
    raise ValueError(f'{name}={path} cannot be written: {error.strerror}'
                     ) from error
  return path
