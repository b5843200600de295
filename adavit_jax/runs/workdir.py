"""Listings of a work directory, and errors of writing there."""

import contextlib
import os
import textwrap

import fsspec


def fresh_listings(address) -> None:
  """Lets a store be listed as it is; fsspec would list it as it once was.

  Another machine may be training in the directory, and the listings that fsspec
  keeps do not expire. Without effect once the store was opened in this process.

  Args:
    address: such as gs://BUCKET/RUN.
  """
  protocol = os.fspath(address).partition('://')[0]
  fsspec.config.conf.setdefault(protocol, {}).setdefault(
      'use_listings_cache', False)


@contextlib.contextmanager
def writing(path):
  """Turns errors of the disk into one that names what could not be written.

  Args:
    path: what is written.

  Raises:
    ValueError: if the disk is full or read-only, or another such reason.
  """
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:
    # TensorStore raises other types than OSError, with the system's code.
    if not isinstance(error, OSError) and 'os_error_code' not in str(error):
      raise
    reason = textwrap.shorten(str(error), 200)
    raise ValueError(f'{path} cannot be written ({reason}); what was saved '
                     f'before is intact, and the same command resumes from it'
                     ) from error
