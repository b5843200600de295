"""Long work between training steps asks here whether it should stop.

A mask search, a validation or a pass over the data takes minutes. Between two
of its batches it calls `check`, which does nothing unless a training runs that
a signal asked to stop.
"""

import contextlib


class Stopped(Exception):
  """A signal asked the training to stop."""


_check = None  # signals are of the process, and so is this


@contextlib.contextmanager
def checked_by(check):
  """While it is open, `check` calls the given function, which may raise."""
  global _check
  before, _check = _check, check
  try:
    yield
  finally:
    _check = before


def check():
  """Raises `Stopped` if a signal asked the training that runs to stop.

  All processes of a job must call it equally often.
  """
  if _check is not None:
    _check()
