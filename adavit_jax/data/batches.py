"""Batches as a pure function of seed and step: training resumes at any step."""

from collections.abc import Generator
import contextlib
import functools
import queue
import threading
from typing import NamedTuple

import numpy as np

from adavit_jax.data import crops as crops_lib
from adavit_jax.data import splits
from adavit_jax.data import worker_batches

_PREFETCH = 2


def batch_indices(
    seed: int, step: int, *, size: int, batch_size: int, repeats: int = 1
) -> np.ndarray:
  """Returns the indices of the training examples of one step.

  The stream concatenates one permutation of the dataset per epoch, with r
  adjacent copies of each example (repeated augmentation; Hoffer et al., 2020).
  Step s takes B positions from s * B on, so a batch may begin or end amid the
  copies, or span two epochs, and no example is left out.

  Args:
    seed: seed of the stream, at least 0.
    step: training step, at least 0.
    size: n, number of examples.
    batch_size: B, with at most n different examples in a batch.
    repeats: r, at least 1.

  Returns:
    int64 [B] in 0..n-1.

  Raises:
    ValueError: if the batch is empty or has more examples than the dataset,
      repeats is less than 1, or seed or step is negative.
  """
  if repeats < 1:
    raise ValueError(f'repeats={repeats} must be at least 1')
  if seed < 0 or step < 0:
    raise ValueError(f'seed={seed} and step={step} must be at least 0')
  start, copies = divmod(step * batch_size, repeats)
  count = -(-(copies + batch_size) // repeats)
  if batch_size < 1 or count > size:
    raise ValueError(
        f'batch_size={batch_size} must be at least 1, and with'
        f' repeats={repeats} hold at most the {size} images of the split: a'
        f' batch now has {count}')
  epoch, first = divmod(start, size)
  indices = _permutation(seed, epoch, size)[first:first + count]
  if len(indices) < count:
    rest = _permutation(seed, epoch + 1, size)[:count - len(indices)]
    indices = np.concatenate([indices, rest])
  return np.repeat(indices, repeats)[copies:copies + batch_size]


def train_batches(
    split: splits.Split,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    batch_size: int,
    repeats: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    crop: crops_lib.Crop | None = None,
    workers: int = 0,
) -> Generator[dict[str, np.ndarray]]:
  """Yields this process's slice of the batches start_step..stop_step-1.

  Lazy splits are prefetched, in a thread (see `ahead`) or by worker processes.
  The batches are the same for every number of workers, and each row the same
  for every number of processes.

  Args:
    split: n examples.
    seed: seed of the stream, see `batch_indices`.
    start_step: first step.
    stop_step: one past the last step.
    batch_size: B, over all processes.
    repeats: how often each image is in a batch, see `batch_indices`.
    process_index: which contiguous slice of the batch to yield.
    process_count: P, number of slices.
    crop: random crops, for a split with `crops`; None for whole images.
    workers: processes that decode for this one; 0 for threads in it.

  Yields:
    image: uint8 [B / P, H, W, C]; label: int32 [B / P], float32 for regression.

  Raises:
    ValueError: at the call, if the batch is not divisible by the number of
      processes, or as `batch_indices`.
  """
  if not 0 <= process_index < process_count:
    raise ValueError(
        f'process_index={process_index} must be in 0..{process_count - 1}')
  if batch_size % process_count:
    raise ValueError(
        f'batch_size={batch_size} must be a multiple of the'
        f' {process_count} processes')
  share = batch_size // process_count
  load = _Load(split, seed, batch_size, repeats, crop)
  load.indices(start_step)
  first = process_index * share
  if split.lazy and workers:
    return worker_batches.run(
        load, range(start_step, stop_step), range(first, first + share),
        workers)
  return ahead(
      (load(step, first, first + share)
       for step in range(start_step, stop_step)), split)


class _Load(NamedTuple):
  """Makes rows of the batch of a step; see `train_batches` for its fields."""
  split: splits.Split
  seed: int
  batch_size: int
  repeats: int
  crop: crops_lib.Crop | None

  def indices(self, step: int) -> np.ndarray:
    return batch_indices(
        self.seed, step, size=len(self.split), batch_size=self.batch_size,
        repeats=self.repeats)

  def __call__(self, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Returns the rows start..stop-1 of the global batch."""
    split, indices = self.split, self.indices(step)[start:stop]
    if self.crop is not None:
      seeds = [(self.seed, step, row) for row in range(start, stop)]
      images = split.crops(indices, seeds, self.crop)
    elif self.repeats == 1:
      images = split.images(indices)
    else:  # Read once, copied for its repeats.
      distinct, rows = np.unique(indices, return_inverse=True)
      images = split.images(distinct)[rows]
    return dict(image=images, label=split.labels[indices])


# A stream uses two permutations at a time; 1.3 million images take 10 MB each.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)


def ahead(items: Generator, split: splits.Split) -> Generator:
  """Yields items, prefetching two in a thread if the split is lazy.

  The thread ends with the generator; its exceptions are raised here.

  Args:
    items: generator of items made from the split's images.
    split: the split; one in memory is faster without a thread.

  Returns:
    A generator of the items.
  """
  return _ahead(items) if split.lazy else items


def _ahead(items):
  ready = queue.Queue(_PREFETCH)
  closed = threading.Event()

  def put(kind, value):
    # Do not block on a full queue after the reader has stopped.
    while not closed.is_set():
      try:
        return ready.put((kind, value), timeout=0.1)
      except queue.Full:
        continue

  def work():
    try:
      with contextlib.closing(items):
        for item in items:
          put('item', item)
          if closed.is_set():
            return
      put('end', None)
    # Pass on every exception: otherwise the reader would wait forever.
    except BaseException as error:
      put('error', error)

  thread = threading.Thread(target=work, name='adavit-data', daemon=True)
  thread.start()
  try:
    while True:
      kind, value = ready.get()
      if kind == 'end':
        return
      if kind == 'error':
        raise value
      yield value
  finally:
    closed.set()
    thread.join()
