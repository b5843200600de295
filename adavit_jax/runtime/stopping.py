"""Long work between training steps asks here whether it should stop.

A mask search, a validation or a pass over the data takes minutes. Between two
of its batches it calls `check`, which does nothing unless a training runs that
a signal asked to stop.
"""

import contextlib
import threading


class Stopped(Exception):
  """A signal asked the training to stop."""


_checks = {}  # by thread, since others may evaluate meanwhile


@contextlib.contextmanager
def checked_by(check):
  """While it is open, `check` calls the given function, which may raise."""
  thread = threading.get_ident()
  _checks[thread] = check
  try:
    yield
  finally:
    del _checks[thread]


def check():
  """Raises `Stopped` if a signal asked the training that runs to stop.

  All processes of a job must call it equally often.
  """
  if thread_check := _checks.get(threading.get_ident()):
    thread_check()
