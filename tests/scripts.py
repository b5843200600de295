"""Scripts of the project that tests import, each with flags of its own."""

import contextlib
import functools
import pathlib

from absl import flags
from ml_collections import config_flags
import pytest
import tiny


@contextlib.contextmanager
def own_flags(folder):
  """Imports from a folder; flags that are defined meanwhile are apart.

  Several scripts define the same flags, which absl refuses in one process.

  Args:
    folder: of the project, such as 'benchmarks'.

  Yields:
    `FlagValues` with these flags.
  """
  own = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    for module in (flags, config_flags):
      for name in {*dir(module)} - {'DEFINE_flag'}:  # config_flags calls it
        if name.startswith(('DEFINE_', 'mark_flag')):
          patch.setattr(module, name, functools.partial(
              getattr(module, name), flag_values=own))
    patch.syspath_prepend(pathlib.Path(tiny.ROOT, folder))
    yield own
