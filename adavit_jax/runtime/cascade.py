"""The cascade runner: images that leave at an early exit skip later stages.

Each stage is compiled once for each of a few batch sizes. Thresholds are
compared on the host and are not compiled in: they can change at any time.
"""

import threading
from typing import NamedTuple

import jax
import numpy as np

from adavit_jax import describe
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.runtime import cascade_stream
from adavit_jax.runtime import forks
from adavit_jax.runtime import image_buffer
from adavit_jax.runtime import stage_program

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _always(k, num):
  del k, num
  return True


class CascadePrediction(NamedTuple):
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

  def unstack(self):
    """Returns a list with the `CascadePrediction` of each image."""
    return [CascadePrediction(*values) for values in zip(*self)]


class Cascade:
  """Runs each stage on the images that no earlier exit was confident about.

  Threads may share it; their batches run one after the other.

  Attributes:
    num_stages: E.
    batch_size: the largest batch size.
    macs_dtype: dtype of `Prediction.macs`.
    programs: E functions `(images, state) -> (state, logits, confidence, ...)`.
    guard: `forks.Guard`.
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
    self._params = jax.device_put(jax.tree.map(np.asarray, params))
    self.programs = [
        stage_program.StageProgram(
            stage_program.with_exit(stage, rule, image_macs, k), self._params)
        for k, stage in enumerate(stages)]
    self._batches = [
        image_buffer.fastest_batches(sizes, macs) for macs in stage_macs]
    self._stage_macs = np.asarray(stage_macs)
    self.macs_dtype = (
        self._stage_macs.dtype if image_macs is None else np.float64)
    self._label = predict or (lambda logits: logits.argmax(-1))
    self.num_stages = len(stages)
    self._sizes, self.batch_size = sizes, sizes[-1]
    self._buffer, self._lock = None, threading.Lock()
    self.guard = forks.Guard()
    self.thresholds = thresholds

  @property
  def params(self):
    """Parameters of the model, on the device.

    They may be replaced by others of the same shapes without recompiling.
    """
    return self._params

  @params.setter
  def params(self, value):
    self._params = value
    for program in self.programs:
      program.set_params(value)

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
        value, self.num_stages)

  def __call__(self, images, may_start=_always):
    """Classifies a batch.

    Args:
      images: [n, S, S, C], n >= 1, normalized; JAX arrays with n > 1 are copied
        to the host.
      may_start: (index of a stage, number of its images) -> bool, called before
        each stage of each batch. If it returns False, the images keep the
        logits of the stage before. The first stage always runs.

    Returns:
      `CascadePrediction`, in the order of the images.

    Raises:
      ValueError: if the batch is empty, does not have four axes, or does not
        have the model's image size.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or not len(images):
      raise ValueError(f'images have shape {np.shape(images)}; give [n, S, S, '
                       f'C] with n >= 1, a single image as image[None]')
    self.guard.check()
    num, size = len(images), self.batch_size
    if num == 1:
      return self._one(images, may_start)
    images = np.asarray(images)
    with self._lock:
      if self._buffer is None or not self._buffer.fits(images):
        self._buffer = self.make_buffer(images, stream=False)
      # An exception may leave a buffer whose arrays were donated.
      buffer, self._buffer = self._buffer, None
      parts = [self._batch(buffer, images[i:i + size], may_start)
               for i in range(0, num, size)]
      self._buffer = buffer
    return CascadePrediction(*map(np.concatenate, zip(*parts)))

  def _one(self, images, may_start):
    """Classifies one image (RAViT, algorithm 1)."""
    state, macs = None, 0
    for k, program in enumerate(self.programs):
      if not may_start(k, 1) and k:
        break
      state, logits, confidence, *computed = program(images, state)
      macs, exits = macs + self._macs(k, 1, computed), np.array([k])
      if self._leave(k, np.asarray(confidence))[0]:
        break
    return self.predict(np.array(logits), exits, macs)

  def _batch(self, buffer, images, may_start):
    """Classifies up to `batch_size` images; image i is in slot i."""
    slots = np.arange(len(images))
    self.admit(buffer, images, slots)
    logits, exits = None, np.zeros(len(images), int)
    macs = np.zeros(len(images), self.macs_dtype)
    for k in range(self.num_stages):
      if not len(slots) or not may_start(k, len(slots)) and k:
        break
      y, stage_macs, leave = self.run_stage(buffer, k, slots)
      if logits is None:
        logits = y
      macs[slots] += stage_macs
      logits[slots], exits[slots] = y, k
      slots = slots[~leave]
    return self.predict(logits, exits, macs)

  def stream(self, images, *, window=None):
    """Classifies a stream of images; each stage runs full batches.

    Images wait in a queue before each stage until they fill the largest batch
    size; when the source ends, the queues are emptied.

    Args:
      images: iterable of [S, S, C], read no faster than needed.
      window: the most images that may be read but not yet yielded. When it is
        full, the oldest image runs in a smaller batch. None for 16 times the
        largest batch size.

    Returns:
      Iterator of the `CascadePrediction` of each image: logits [K], labels,
      exit and macs []; in the order of the images. It raises a ValueError if
      images differ in shape or dtype or do not have the model's size. This, or
      an error of the source, is raised after the images before it were
      answered.

    Raises:
      ValueError: if window is smaller than the largest batch size.
    """
    size = self.batch_size
    window = 16 * size if window is None else window
    if window < size:
      raise ValueError(f'window={window} must be at least the largest batch '
                       f'size, {size}')
    self.guard.check()
    return iter(cascade_stream.Stream(self, images, window))

  def warm_up(self, images):
    """Compiles every stage for every batch size.

    Args:
      images: [n, S, S, C], n >= 1, like those to be classified.

    Raises:
      ValueError: if the images do not have the model's size.
    """
    self.guard.check()
    images = np.asarray(images[:1])
    no_slots = np.array([], int)
    for stream in (True, False):
      buffer = self.make_buffer(images, stream=stream)
      for size in self._sizes:
        buffer.admit(images[:0], no_slots, [size])
        for k in range(self.num_stages):
          buffer.run(k, no_slots, [size])
    with self._lock:
      self._buffer = buffer

  def batches(self, k, num):
    """Returns the sizes of the batches in which stage k runs `num` images."""
    return self._batches[k][num]

  def make_buffer(self, images, *, stream):
    """Makes an `ImageBuffer` for a stream, or for one batch at a time."""
    # In a stream, less than a full batch waits at each stage that is not
    # running.
    capacity = self.batch_size * (self.num_stages if stream else 1)
    return image_buffer.ImageBuffer(self.programs, images, capacity)

  def admit(self, buffer, images, slots):
    """Puts images [m, S, S, C] into slots [m] of a buffer."""
    buffer.admit(images, slots, self.batches(0, len(slots)))

  def run_stage(self, buffer, k, slots):
    """Runs stage k on the images in slots [m] of a buffer.

    Returns:
      (logits [m, K], MACs of the stage [m], whether each image leaves [m]).
    """
    logits, confidence, *computed = buffer.run(
        k, slots, self.batches(k, len(slots)))
    return (logits, self._macs(k, len(slots), computed),
            self._leave(k, confidence))

  def predict(self, logits, exits, macs):
    """Makes the `CascadePrediction` of images that left."""
    return CascadePrediction(logits, self._label(logits), exits, macs)

  def _leave(self, k, confidence):
    if k == len(self._thresholds):
      return np.ones(len(confidence), bool)
    return confidence.astype(np.float64) > self._thresholds[k]

  def _macs(self, k, num, computed):
    """MACs of stage k, [num]; `computed` holds those of its program, if any."""
    if computed:
      return np.asarray(computed[0], self.macs_dtype)
    return np.full(num, self._stage_macs[k])
