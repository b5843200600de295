"""The cascade runner: images that leave at an early exit skip later stages.

Each stage is compiled once for each of a few batch sizes. Thresholds are
compared on the host and are not compiled in: they can change at any time.
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
  """Results of a cascade on n images; `Cascade.stream` omits that axis.

  Attributes:
    logits: [n, K] float32, at the exit where the image left.
    labels: [n], the logits after `predict`: by default int, the class of the
      largest logit.
    exit: [n] int, 0 for the first exit.
    macs: [n], MACs of all stages that ran on the image.
  """
  logits: np.ndarray
  labels: np.ndarray
  exit: np.ndarray
  macs: np.ndarray

  def __repr__(self):
    return describe.record(self, labels=describe.values, exit=describe.values,
                           macs=describe.mean_macs)


class Cascade:
  """Runs each stage on the images that no earlier exit was confident about.

  Threads may share it; their batches run one after the other.

  Attributes:
    params: parameters of the model, on the device.
  """

  def __init__(self, stages, params, rule, thresholds, stage_macs, *,
               image_macs=None, predict=None, sizes=SIZES):
    """Makes a runner; programs are compiled on first use, or by `warm_up`.

    Args:
      stages: E stages, from `runtime.stages.stages`.
      params: parameters of the model.
      rule: one of `exits.confidence.RULES`, or any other `Rule`.
      thresholds: see the property `thresholds`.
      stage_macs: [E], the most MACs that each stage takes for one image.
      image_macs: function (index of the stage, its new carry) -> MACs of the
        stage for each image, [B] or [], if images differ; None uses
        `stage_macs`.
      predict: logits [n, K] to labels [n], NumPy; None for the largest logit.
      sizes: batch sizes to compile for; they must include 1. A larger batch is
        split into batches of the largest size. A stream runs a stage when that
        many images wait for it, and holds at most E times as many on the
        device.

    Raises:
      ValueError: if sizes lacks 1, stage_macs does not have one value for each
        stage, or thresholds are invalid.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] != 1:
      raise ValueError(f'sizes={sizes} must include 1, for single images')
    if len(stage_macs) != len(stages):
      raise ValueError(f'stage_macs={stage_macs} must have one number for each '
                       f'of the {len(stages)} stages')
    # Through the host: with parameters placed on a mesh, the pools would change
    # their sharding on first use and trigger a second compilation.
    self.params = jax.device_put(jax.tree.map(np.asarray, params))
    self._programs = [
        stage_program.StageProgram(
            _program(stage, rule, image_macs, k), self.params)
        for k, stage in enumerate(stages)]
    self._plans = [slots_lib.plans(sizes, macs) for macs in stage_macs]
    self._stage_macs = np.asarray(stage_macs)
    self._macs_dtype = (
        self._stage_macs.dtype if image_macs is None else np.float64)
    self._label = predict or (lambda logits: logits.argmax(-1))
    self._sizes, self._batch_size = sizes, sizes[-1]
    self._slots, self._lock = None, threading.Lock()
    self.thresholds = thresholds

  @property
  def thresholds(self):
    """[E - 1] float64: images with a confidence above the threshold leave.

    One number sets all of them. They may be set at any time, also while a
    stream is running.
    """
    return self._thresholds

  @thresholds.setter
  def thresholds(self, value):
    self._thresholds = confidence_lib.check_thresholds(
        value, len(self._programs))

  def __call__(self, images):
    """Classifies a batch.

    Args:
      images: [n, S, S, C], n >= 1, normalised; JAX arrays with n > 1 are copied
        to the host.

    Returns:
      `Prediction`, in the order of the images.

    Raises:
      ValueError: if the batch is empty, does not have four axes, or does not
        have the model's image size.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or not len(images):
      raise ValueError(f'images have shape {np.shape(images)}; give [n, S, S, '
                       f'C] with n >= 1, a single image as image[None]')
    num, size = len(images), self._batch_size
    if num == 1:
      return self._one(images)
    images = np.asarray(images)
    with self._lock:
      if self._slots is None or not self._slots.fits(images):
        self._slots = self._make_slots(images, streams=False)
      # An exception may leave slots whose arrays were donated.
      slots, self._slots = self._slots, None
      parts = [self._batch(slots, images[i:i + size])
               for i in range(0, num, size)]
      self._slots = slots
    return Prediction(*map(np.concatenate, zip(*parts)))

  def _one(self, images):
    """Classifies one image (RAViT, algorithm 1)."""
    state, macs = None, 0
    for k, program in enumerate(self._programs):
      state, logits, confidence, *computed = program(images, state)
      macs += self._macs(k, 1, computed)
      if self._leave(k, np.asarray(confidence))[0]:
        return self._predict(np.asarray(logits), np.array([k]), macs)

  def _batch(self, slots, images):
    rows = np.arange(len(images))
    slots.admit(images, rows, self._plans[0][len(rows)])
    exits = np.zeros(len(images), int)
    logits, macs = None, 0
    for k in range(len(self._programs)):
      y, confidence, *computed = slots.run(k, rows, self._plans[k][len(rows)])
      stage_macs = self._macs(k, len(rows), computed)
      if logits is None:
        logits, macs = y, stage_macs
      else:
        macs[rows] += stage_macs
      leave = self._leave(k, confidence)
      logits[rows[leave]], exits[rows[leave]] = y[leave], k
      rows = rows[~leave]
      if not len(rows):
        break
    return self._predict(logits, exits, macs)

  def stream(self, images, *, window=None):
    """Classifies a stream of images; each stage runs full batches.

    Images wait in a queue before each stage until they fill the largest batch
    size; when the source ends, the queues are emptied.

    Args:
      images: iterable of [S, S, C], read no faster than needed.
      window: the most images that may be read but not yet yielded. When it is
        full, the oldest image runs in a smaller batch. None for 16 times the
        largest batch size.

    Yields:
      `Prediction` of one image: logits [K], labels, exit and macs []; in the
      order of the images.

    Raises:
      ValueError: if window is smaller than the largest batch size, or images
        differ in shape or dtype or do not have the model's size.
    """
    size = self._batch_size
    window = 16 * size if window is None else window
    if window < size:
      raise ValueError(f'window={window} must be at least the largest batch '
                       f'size, {size}')
    source = _Source(images)
    queues = [collections.deque() for _ in self._programs]
    slots, free, numbers, done = None, [], {}, {}
    macs = np.zeros(0)  # per slot: MACs of the image in it so far
    first = 0  # index of the oldest image that has not been yielded
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
        # The source is exhausted. The first stage goes first, so that late
        # batches are large.
        k = next((k for k, queue in enumerate(queues) if queue), None)
        if k is None:
          return
      elif k is None:
        # Each queue is in order: the oldest image is at the head of one.
        k = min((k for k, queue in enumerate(queues) if queue),
                key=lambda k: numbers[queues[k][0]])
      queue = queues[k]
      rows = np.array([queue.popleft() for _ in range(min(size, len(queue)))])
      logits, confidence, *computed = slots.run(
          k, rows, self._plans[k][len(rows)])
      macs[rows] = (macs[rows] if k else 0) + self._macs(
          k, len(rows), computed)
      leave = self._leave(k, confidence)
      freed = rows[leave].tolist()
      free.extend(freed)
      predictions = self._predict(
          logits[leave], np.full(len(freed), k), macs[rows[leave]])
      done.update(zip((numbers.pop(i) for i in freed), zip(*predictions)))
      if k + 1 < len(queues):
        queues[k + 1].extend(rows[~leave].tolist())
      while first in done:
        yield Prediction(*done.pop(first))
        first += 1

  def warm_up(self, images):
    """Compiles every stage for every batch size.

    Args:
      images: [n, S, S, C], n >= 1, like those to be classified.

    Raises:
      ValueError: if the images do not have the model's size.
    """
    images = np.asarray(images[:1])
    no_rows = np.array([], int)
    for streams in (True, False):
      slots = self._make_slots(images, streams)
      for size in self._sizes:
        slots.admit(images[:0], no_rows, [size])
        for k in range(len(self._programs)):
          slots.run(k, no_rows, [size])
    with self._lock:
      self._slots = slots

  def _make_slots(self, images, streams):
    # In a stream, less than a full batch waits at each stage that is not
    # running.
    capacity = self._batch_size * (len(self._programs) if streams else 1)
    return slots_lib.Slots(self._programs, images, capacity)

  def _leave(self, k, confidence):
    if k == len(self._thresholds):
      return np.ones(len(confidence), bool)
    return confidence.astype(np.float64) > self._thresholds[k]

  def _macs(self, k, num, computed):
    """MACs of stage k, [num]; `computed` holds those of its program, if any."""
    if computed:
      return np.asarray(computed[0], self._macs_dtype)
    return np.full(num, self._stage_macs[k])

  def _predict(self, logits, exits, macs):
    return Prediction(logits, self._label(logits), exits, macs)


class _Source:
  """Reads images in groups, checks that they are alike and counts them."""

  def __init__(self, images):
    self._images = iter(images)
    self._like = None  # shape and dtype of the first image
    self.read = 0

  def take(self, num):
    group = [np.asarray(x) for x in itertools.islice(self._images, num)]
    for image in group:
      like = image.shape, str(image.dtype)
      self._like = self._like or like
      if like != self._like:
        raise ValueError(
            'image {} has shape {} and dtype {}, but the first image has {} '
            'and {}; give all images one shape and dtype'.format(
                self.read, *like, *self._like))
      self.read += 1
    return group


def _program(stage, rule, image_macs, k):
  """Joins a stage and its exit: (params, images, state) -> outputs.

  The outputs are the new state, logits [B, K], the confidence [B] and, with
  `image_macs`, MACs [B].
  """
  def run(params, images, state):
    carry, memory = state or (None, None)
    carry, logits = stage(params, images, carry)
    confidence, memory = rule(logits, memory)
    macs = () if image_macs is None else (
        jnp.broadcast_to(image_macs(k, carry), confidence.shape),)
    return ((carry, memory), logits, confidence, *macs)
  return run
