"""Batches as a pure function of seed and step, so that any step can resume."""

from collections.abc import Iterator
import functools
import queue
import threading

import numpy as np

from adavit_jax.data import splits

_PREFETCH = 2


def batch_indices(
    seed: int, step: int, *, size: int, batch_size: int
) -> np.ndarray:
  """Returns the training examples of one step.

  The stream is the concatenation of the epochs' permutations of the data set;
  step s takes its positions s * batch_size onward, so that a batch may span
  two epochs and no example is left out.

  Args:
    seed: of the stream, 0 or more.
    step: 0 or more.
    size: the number of examples n.
    batch_size: B, at most n.

  Returns:
    int64 [B] in 0..n-1.

  Raises:
    ValueError: the batch is empty or larger than the data set, or seed or step
      is negative.
  """
  if not 1 <= batch_size <= size:
    raise ValueError(
        f'batch_size={batch_size} must lie in 1..{size}, the number of images'
        ' in the split.'
    )
  if seed < 0 or step < 0:
    raise ValueError(f'seed={seed} and step={step} must be at least 0.')
  epoch, first = divmod(step * batch_size, size)
  indices = _permutation(seed, epoch, size)[first:first + batch_size]
  if len(indices) < batch_size:
    rest = _permutation(seed, epoch + 1, size)[:batch_size - len(indices)]
    return np.concatenate([indices, rest])
  return indices.copy()


def train_batches(
    split: splits.Split,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's share of the batches of start_step..stop_step-1.

  Lazy splits are decoded ahead in a thread, which ends with the generator; an
  exception there is raised here.

  Args:
    split: n examples.
    seed: of the stream, see `batch_indices`.
    start_step: the first step.
    stop_step: one past the last step.
    batch_size: B, of all processes together.
    process_index: which contiguous slice of the batch to yield.
    process_count: the number P of slices.

  Yields:
    image: uint8 [B / P, H, W, C]; label: int32 [B / P], of a regression
    float32.

  Raises:
    ValueError: at the call, if the batch is larger than the split or cannot be
      divided among the processes.
  """
  if not 0 <= process_index < process_count:
    raise ValueError(
        f'process_index={process_index} must lie in 0..{process_count - 1}.'
    )
  if batch_size % process_count:
    raise ValueError(
        f'batch_size={batch_size} must be a multiple of the'
        f' {process_count} processes.'
    )
  n = len(split)
  batch_indices(seed, start_step, size=n, batch_size=batch_size)
  share = batch_size // process_count
  mine = slice(process_index * share, (process_index + 1) * share)

  def batches():
    for step in range(start_step, stop_step):
      indices = batch_indices(seed, step, size=n, batch_size=batch_size)[mine]
      yield dict(image=split.images(indices), label=split.labels[indices])

  return ahead(batches(), split)


def eval_batches(
    split: splits.Split, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
  """Yields every example once, in order, in batches of one size.

  Args:
    split: n examples.
    batch_size: B.

  Yields:
    images uint8 [B, H, W, C], labels int32 [B] (of a regression float32), mask
    bool [B], indices int64 [B]. The last batch is padded with zero images of
    label 0 and index -1, on which the mask is 0.

  Raises:
    ValueError: at the call, if batch_size is not positive.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size} must be at least 1.')

  def batches():
    for start in range(0, len(split), batch_size):
      indices = np.arange(start, min(start + batch_size, len(split)))
      images, labels = split.images(indices), split.labels[indices]
      pad = batch_size - len(indices)
      yield (
          np.pad(images, [(0, pad), (0, 0), (0, 0), (0, 0)]),
          np.pad(labels, (0, pad)),
          np.arange(batch_size) < len(indices),
          np.pad(indices, (0, pad), constant_values=-1),
      )

  return ahead(batches(), split)


# A stream holds two permutations at a time; 1.3 million images take 10 MB each.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)


def ahead(items: Iterator, split: splits.Split) -> Iterator:
  """Yields items made of a split's images, prepared ahead where it is lazy.

  A thread prepares the next two meanwhile; it ends with the generator, and an
  exception there is raised here.

  Args:
    items: iterator that decodes the images; one that is not lazy is faster
      without a thread.
    split: that the images are of.

  Returns:
    A generator of the items.
  """
  return _ahead(items) if split.lazy else items


def _ahead(items):
  ready = queue.Queue(_PREFETCH)
  closed = threading.Event()

  def put(kind, value):
    # A full queue must not hold the thread once nobody reads it.
    while not closed.is_set():
      try:
        return ready.put((kind, value), timeout=0.1)
      except queue.Full:
        continue

  def work():
    try:
      for item in items:
        put('item', item)
        if closed.is_set():
          return
      put('end', None)
    # Whatever it is: unreported, the reader would wait for ever.
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
