"""Batches decoded by worker processes, with grain.

Threads of one process share its interpreter, which limits them to a few cores;
a host of a pod has dozens.
"""

from collections.abc import Callable, Iterator
import contextlib
import multiprocessing
import os
import signal
import threading

from absl import flags
import numpy as np

# Rows that a worker decodes at a time: less than a batch, so that the first
# batch is early. Each worker has up to eight such parts ready.
_ROWS = 32
_BUFFER = 2


def run(
    load: Callable[[int, int, int], dict[str, np.ndarray]],
    steps: range,
    rows: range,
    workers: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the rows of the batch of each step, in order.

  Args:
    load: (step, start, stop) -> the rows start..stop-1 of a batch; is copied to
      the workers.
    steps: the steps.
    rows: the rows of the batch.
    workers: number of processes, at least 1.

  Yields:
    dict of arrays [len(rows), ...].

  Raises:
    ValueError: if a worker ends.
  """
  import grain  # of the extra `input`, which `data.load` asks for

  if not flags.FLAGS.is_parsed():  # grain reads flags, in notebooks too
    flags.FLAGS.mark_as_parsed()
  parts = -(-len(rows) // _ROWS)
  bounds = [rows.start + len(rows) * i // parts for i in range(parts + 1)]
  items = grain.MapDataset.range(steps.start * parts, steps.stop * parts)
  parted = items.map(_Part(load, bounds)).to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(
          grain.MultiprocessingOptions(
              num_workers=workers, per_worker_buffer_size=_BUFFER),
          worker_init_fn=_begin)
  return _joined(parted, parts, workers)


def _joined(parted, parts, workers):
  before, children, found = set(multiprocessing.active_children()), set(), []
  with contextlib.closing(iter(parted)) as items:
    try:
      for part in items:
        # They are there by the first part; later ones are of other batches.
        children = children or _workers() - before
        found.append(part)
        if len(found) == parts:
          yield {name: np.concatenate([part[name] for part in found])
                 for name in part}
          found = []
    except RuntimeError as error:
      if 'terminated' not in str(error):
        raise
      raise ValueError(
          f'one of data.workers={workers} processes ended; if the system has'
          ' little memory, set data.workers lower') from error
    finally:
      # grain would stop one after the other, each in more than a second.
      for child in children or _workers() - before:
        child.kill()


def _workers():
  """Returns the processes of grain that this process began."""
  return {child for child in multiprocessing.active_children()
          if child.name.startswith('grain')}


def _begin(worker, num_workers):
  """Leaves signals to the parent, and ends this worker if it is killed.

  A terminal or a scheduler sends them to all processes, but the parent saves
  its state first and needs batches until then.
  """
  del worker, num_workers
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _Part:
  """Loads item number `step * parts + part`."""

  def __init__(self, load, bounds):
    self._load, self._bounds = load, bounds

  def __call__(self, item):
    step, part = divmod(int(item), len(self._bounds) - 1)
    return self._load(step, *self._bounds[part:part + 2])
