"""The path of a work directory, as users give it."""

import os


def expanded(workdir) -> str:
  """Returns a work directory with ~ expanded; gs:// addresses stay.

  Args:
    workdir: a path or an address.

  Raises:
    ValueError: if it is empty, or of an unknown user.
  """
  path = os.fspath(workdir)
  if not path:
    raise ValueError("workdir='' is empty: give the directory of the run, '.' "
                     'for the current one')
  path = os.path.expanduser(path)
  if path.startswith('~'):
    raise ValueError(f'workdir={path!r}: there is no such user; to use a '
                     f'directory of that name, give ./{path}')
  return path
