"""The path of a work directory, and errors of writing there."""

import contextlib
import os
import textwrap


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


@contextlib.contextmanager
def writing(path, *others):
  """Turns errors of writing a file or directory into one that names it.

  Args:
    path: what is written.
    *others: types of errors that a full or read-only disk raises, beside
      OSError.

  Raises:
    ValueError: for each of these errors.
  """
  try:
    yield
  except (OSError, *others) as error:
    reason = textwrap.shorten(str(error), 200)
    raise ValueError(f'{path} cannot be written ({reason}); what was saved '
                     f'before is intact, and the same command resumes from it'
                     ) from error
