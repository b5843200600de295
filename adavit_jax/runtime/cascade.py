"""The cascade runner: late stages run on the images that early exits left.

A stage is compiled once for each of a few batch sizes. Thresholds are compared
on the host and are in no program: they can change at any time.
"""

import collections
import itertools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax import describe
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.runtime import slots as slots_lib
from adavit_jax.runtime import stage_program

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Prediction(NamedTuple):
  """What became of n images; `Cascade.stream` gives it without that axis.

  Attributes:
    logits: [n, K] float32, at the exit that the image left at.
    labels: [n], what `predict` makes of them: by default int, the class of the
      largest logit.
    exit: [n] int, 0 for the first exit.
    macs: [n], MACs of all stages that the image went through.
  """
  logits: np.ndarray
  labels: np.ndarray
  exit: np.ndarray
  macs: np.ndarray

  def __repr__(self):
    return describe.record(self, labels=describe.values, exit=describe.values,
                           macs=describe.mean_macs)


class Cascade:
  """Runs each stage on the images that no exit before was sure of.

  Threads may share it; their batches wait for each other.

  Attributes:
    params: parameters of the model, on the device.
  """

  def __init__(self, stages, params, rule, thresholds, stage_macs, *,
               spent=None, predict=None, sizes=SIZES):
    """Makes a runner; programs are compiled when first used, or by `warm_up`.

    Args:
      stages: E stages, from `runtime.stages.stages`.
      params: parameters of the model.
      rule: one of `exits.confidence.RULES`, or any other `Rule`.
      thresholds: see the property of that name.
      stage_macs: [E], MACs of each stage for one image, at most.
      spent: MACs of a stage for each image where they differ, a function
        (number of the stage, its new carry) -> [B] or []; None: `stage_macs`.
      predict: logits [n, K] to labels [n], NumPy; None for the largest logit.
      sizes: batch sizes to compile for, 1 among them. A larger batch is run in
        pieces of the largest. A stream runs a stage when that many images wait
        for it, and holds at most E times as many on the device.

    Raises:
      ValueError: for arguments that do not fit together.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] != 1:
      raise ValueError(f'sizes={sizes} must hold 1, for single images')
    if len(stage_macs) != len(stages):
      raise ValueError(f'stage_macs={stage_macs} must have one number for each '
                       f'of the {len(stages)} stages')
    # By way of the host: beside parameters that were laid on a mesh, the pools
    # would change their sharding at first use, and be compiled for once more.
    self.params = jax.device_put(jax.tree.map(np.asarray, params))
    self._programs = [
        stage_program.StageProgram(_program(stage, rule, spent, k), self.params)
        for k, stage in enumerate(stages)]
    self._plans = [slots_lib.plans(sizes, macs) for macs in stage_macs]
    self._stage_macs = np.asarray(stage_macs)
    self._macs_dtype = self._stage_macs.dtype if spent is None else np.float64
    self._label = predict or (lambda logits: logits.argmax(-1))
    self._sizes, self._batch_size = sizes, sizes[-1]
    self._slots, self._lock = None, threading.Lock()
    self.thresholds = thresholds

  @property
  def thresholds(self):
    """[E - 1] float64: an image leaves above it. One number sets all of them.

    May be set at any time, also while a stream is running.
    """
    return self._thresholds

  @thresholds.setter
  def thresholds(self, value):
    self._thresholds = confidence_lib.check_thresholds(
        value, len(self._programs))

  def __call__(self, images):
    """Classifies a batch.

    Args:
      images: [n, S, S, C], n >= 1, normalised; JAX arrays of n > 1 go through
        the host.

    Returns:
      `Prediction`, rows in the order of the images.

    Raises:
      ValueError: if there are none, they are no batch, or not of the model's
        size.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or not len(images):
      raise ValueError(f'images have shape {np.shape(images)}; give [n, S, S, '
                       f'C] of at least 1, one image as image[None]')
    num, size = len(images), self._batch_size
    if num == 1:
      return self._one(images)
    images = np.asarray(images)
    with self._lock:
      if self._slots is None or not self._slots.fits(images):
        self._slots = self._make_slots(images, streams=False)
      # An exception may leave them with arrays that were donated.
      slots, self._slots = self._slots, None
      parts = [self._batch(slots, images[i:i + size])
               for i in range(0, num, size)]
      self._slots = slots
    return Prediction(*map(np.concatenate, zip(*parts)))

  def _one(self, images):
    """RAViT's algorithm 1."""
    state, macs = None, 0
    for k, program in enumerate(self._programs):
      state, logits, confidence, *spent = program(images, state)
      macs += self._spent(k, 1, spent)
      if self._leave(k, np.asarray(confidence))[0]:
        return self._predict(np.asarray(logits), np.array([k]), macs)

  def _batch(self, slots, images):
    rows = np.arange(len(images))
    slots.admit(images, rows, self._plans[0][len(rows)])
    exits = np.zeros(len(images), int)
    logits, macs = None, 0
    for k in range(len(self._programs)):
      y, confidence, *spent = slots.run(k, rows, self._plans[k][len(rows)])
      spent = self._spent(k, len(rows), spent)
      if logits is None:
        logits, macs = y, spent
      else:
        macs[rows] += spent
      leave = self._leave(k, confidence)
      logits[rows[leave]], exits[rows[leave]] = y[leave], k
      rows = rows[~leave]
      if not len(rows):
        break
    return self._predict(logits, exits, macs)

  def stream(self, images, *, window=None):
    """Classifies images one after the other, each stage in full batches.

    Images wait in a queue before each stage until they fill the largest batch
    size; when the source ends, the queues are emptied.

    Args:
      images: iterable of [S, S, C], read no faster than needed.
      window: images read and not yet yielded, at most: at its end the oldest
        runs in a smaller batch. None for 16 times the largest batch size.

    Yields:
      `Prediction` of one image: logits [K], labels, exit and macs []; in the
      order of the images.

    Raises:
      ValueError: for images of different shapes or dtypes, or not of the
        model's size.
    """
    size = self._batch_size
    window = 16 * size if window is None else window
    if window < size:
      raise ValueError(f'window={window} must be at least the largest batch '
                       f'size, {size}')
    source = _Source(images)
    queues = [collections.deque() for _ in self._programs]
    slots, free, numbers, done = None, [], {}, {}
    macs = np.zeros(0)  # of the images in the slots so far
    first = 0  # the oldest image that has not been yielded
    while True:
      k = max((k for k, queue in enumerate(queues) if len(queue) >= size),
              default=None)
      if k is None and source.read - first + size <= window:
        if batch := source.take(size):
          batch = np.stack(batch)
          start = source.read - len(batch)
          if slots is None:
            slots = self._make_slots(batch, streams=True)
            free = list(range(slots.capacity))
            macs = np.zeros(slots.capacity, self._macs_dtype)
          taken = [free.pop() for _ in batch]
          numbers.update(zip(taken, range(start, source.read)))
          slots.admit(batch, np.array(taken), self._plans[0][len(taken)])
          queues[0].extend(taken)
          continue
        # The end: from the first stage on, so that late batches are large.
        k = next((k for k, queue in enumerate(queues) if queue), None)
        if k is None:
          return
      elif k is None:
        # Queues are in order, so that the oldest image is at the head of its.
        k = min((k for k, queue in enumerate(queues) if queue),
                key=lambda k: numbers[queues[k][0]])
      queue = queues[k]
      rows = np.array([queue.popleft() for _ in range(min(size, len(queue)))])
      logits, confidence, *spent = slots.run(
          k, rows, self._plans[k][len(rows)])
      macs[rows] = (macs[rows] if k else 0) + self._spent(k, len(rows), spent)
      leave = self._leave(k, confidence)
      gone = rows[leave].tolist()
      free.extend(gone)
      found = self._predict(
          logits[leave], np.full(len(gone), k), macs[rows[leave]])
      done.update(zip((numbers.pop(i) for i in gone), zip(*found)))
      if k + 1 < len(queues):
        queues[k + 1].extend(rows[~leave].tolist())
      while first in done:
        yield Prediction(*done.pop(first))
        first += 1

  def warm_up(self, images):
    """Compiles every stage for every batch size, for images like [n, S, S, C].

    Raises:
      ValueError: if the images are not of the model's size.
    """
    images = np.asarray(images[:1])
    nowhere = np.array([], int)
    for streams in (True, False):
      slots = self._make_slots(images, streams)
      for size in self._sizes:
        slots.admit(images[:0], nowhere, [size])
        for k in range(len(self._programs)):
          slots.run(k, nowhere, [size])
    with self._lock:
      self._slots = slots

  def _make_slots(self, images, streams):
    # In a stream fewer than a batch wait at every stage but the one that runs.
    capacity = self._batch_size * (len(self._programs) if streams else 1)
    return slots_lib.Slots(self._programs, images, capacity)

  def _leave(self, k, confidence):
    if k == len(self._thresholds):
      return np.ones(len(confidence), bool)
    return confidence.astype(np.float64) > self._thresholds[k]

  def _spent(self, k, num, outputs):
    """MACs of a stage, [num], from what its program returned of them."""
    if outputs:
      return np.asarray(outputs[0], self._macs_dtype)
    return np.full(num, self._stage_macs[k])

  def _predict(self, logits, exits, macs):
    return Prediction(logits, self._label(logits), exits, macs)


class _Source:
  """Reads images in groups and counts them."""

  def __init__(self, images):
    self._images = iter(images)
    self._like = None  # shape and dtype of the first one
    self.read = 0

  def take(self, num):
    group = [np.asarray(x) for x in itertools.islice(self._images, num)]
    for image in group:
      like = image.shape, str(image.dtype)
      self._like = self._like or like
      if like != self._like:
        raise ValueError(
            'image {} has shape {} and dtype {}, the first one {} and {}; make '
            'them alike'.format(self.read, *like, *self._like))
      self.read += 1
    return group


def _program(stage, rule, spent, k):
  """A stage and its exit: (params, images, state) -> (state, logits, ...).

  The others are the confidence [B] and, with `spent`, MACs [B].
  """
  def run(params, images, state):
    carry, memory = state or (None, None)
    carry, logits = stage(params, images, carry)
    confidence, memory = rule(logits, memory)
    more = () if spent is None else (
        jnp.broadcast_to(spent(k, carry), confidence.shape),)
    return ((carry, memory), logits, confidence, *more)
  return run
