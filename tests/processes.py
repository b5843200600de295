"""Processes that are forked from one that has imported the library.

The imports take longer than what most processes of the tests do.
"""

import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
import tempfile

import tiny

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload([
    'absl.app', 'ml_collections.config_flags', 'pytest', 'adavit_jax.report',
    'adavit_jax.runs.loop', 'adavit_jax.inference.export'])


class Process:
  """One that runs a function of a module, which is imported there."""

  def __init__(self, directory, function, *args):
    """Starts it; what it prints goes to new files of a directory."""
    self._files = []
    for name in ('out', 'err'):
      descriptor, path = tempfile.mkstemp(suffix=f'.{name}', dir=directory)
      os.close(descriptor)
      self._files.append(pathlib.Path(path))
    self._process = _context.Process(
        target=_run, args=(self._files, function, args), daemon=True)
    self._process.start()

  @property
  def code(self):
    """How it ended, as of `subprocess`; None while it runs."""
    return self._process.exitcode

  @property
  def out(self):
    return self._files[0].read_text()

  @property
  def err(self):
    return self._files[1].read_text()

  def send(self, signum):
    os.kill(self._process.pid, signum)

  def wait(self, timeout=300):
    """Kills it if it takes longer; returns its code."""
    self._process.join(timeout)
    if self.code is None:
      self.send(signal.SIGKILL)
      self._process.join()
    return self.code


def _run(files, function, args):
  for descriptor, file in enumerate(files, 1):
    os.dup2(os.open(file, os.O_WRONLY), descriptor)
  function(*args)


def script(*argv):
  """Runs a script of the project with arguments, as its command would."""
  os.chdir(tiny.ROOT)
  sys.argv = list(argv)
  sys.path.insert(0, tiny.ROOT)
  runpy.run_path(argv[0], run_name='__main__')
