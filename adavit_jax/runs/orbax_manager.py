"""How Orbax is set up: options of its managers, and what it logs."""

import contextlib

from absl import logging
import jax
import orbax.checkpoint as ocp


def quiet_orbax():
  """Hides the dozens of lines that Orbax logs per checkpoint, but no warnings.

  For programs that log at level INFO. Importing hides nothing, because absl's
  logger belongs to the application.
  """
  logging.get_absl_logger().addFilter(
      lambda record: not _of_orbax(record) or record.levelno > 20)


def _of_orbax(record):
  return 'orbax' in record.pathname


@contextlib.contextmanager
def _unwarned_of_read_only():
  """Hides Orbax's warning about a read-only directory, which is intended."""
  logger = logging.get_absl_logger()
  hide = lambda record: not (
      _of_orbax(record) and 'read only' in str(record.msg))
  logger.addFilter(hide)
  try:
    yield
  finally:
    logger.removeFilter(hide)


def create(directory, max_to_keep, kind, *, read_only, alone):
  """Creates Orbax's manager of the checkpoints in a directory.

  Args:
    directory: its path.
    max_to_keep: how many of the last checkpoints to keep; None for all.
    kind: name of the directory, different for each manager of a process.
    read_only: see `Checkpoints`.
    alone: see `Checkpoints`.
  """
  me = jax.process_index()
  # A separate barrier for each kind, since two kinds may save at the same time.
  processes = ocp.options.MultiprocessingOptions(
      primary_host=me if alone else 0, active_processes={me} if alone else None,
      barrier_sync_key_prefix=kind)
  if read_only:
    # read_only implies the interval and create, but Orbax warns if they are not
    # set.
    options = ocp.CheckpointManagerOptions(
        read_only=True, save_interval_steps=0, create=False,
        multiprocessing_options=processes)
    with _unwarned_of_read_only():
      return ocp.CheckpointManager(directory, options=options)
  directory.mkdir(parents=True, exist_ok=True)
  options = ocp.CheckpointManagerOptions(
      max_to_keep=max_to_keep, create=False, cleanup_tmp_directories=True,
      multiprocessing_options=processes)
  return ocp.CheckpointManager(directory, options=options)


def one_copy(tree):
  """Replaces arrays that every device holds by the copy of one device.

  Orbax writes a part of them from each device, and compiles a slice for every
  shape to do so, which takes longer than writing them. On several hosts each
  has its share to write, so the arrays stay as they are.
  """
  if jax.process_count() > 1:
    return tree
  return jax.tree.map(
      lambda x: x.addressable_data(0)
      if isinstance(x, jax.Array) and x.is_fully_replicated else x, tree)
