"""A trained model with exits as a Python function that stops early."""

import time

import jax
import numpy as np

from adavit_jax import describe
from adavit_jax import models
from adavit_jax.data import decode
from adavit_jax.exits import confidence
from adavit_jax.inference import batch_sizes
from adavit_jax.inference import every_exit
from adavit_jax.inference import pickling
from adavit_jax.policies import knob as knob_lib
from adavit_jax.promise import request
from adavit_jax.runtime import anytime
from adavit_jax.runtime import cascade
from adavit_jax.train import state as state_lib


class CascadeClassifier:
  """Runs a `System` in stages: an image leaves at the first confident exit.

  Threads may share it, like a `runtime.cascade.Cascade`. It is pickled as a
  `Classifier` is.

  Attributes:
    class_names: K strings, or () if the run has none.
    phase: the last phase of the run.
    loaded: as of a `Classifier`.
  """
  EXPORTS = ('stages', 'weights')  # see export
  # Slots make mistyped attributes errors.
  __slots__ = ('class_names', 'phase', 'loaded', '_system', '_cascade',
               '_max_batch_size', '_cost', '_every', '_anytime', '_promise')

  def __init__(self, system, state, phase, *, thresholds=confidence.NEVER,
               class_names=(), max_batch_size=256):
    """Takes the parameters from a state.

    Args:
      system: `System`.
      state: `State` of the system.
      phase: the layers are chosen as at the end of this phase.
      thresholds: see the property `thresholds`.
      class_names: K strings.
      max_batch_size: larger batches are split, and a stream runs a stage when
        this many images wait for it.

    Raises:
      ValueError: if thresholds are invalid, or max_batch_size is not a positive
        integer.
    """
    batch_sizes.check(max_batch_size)
    self._system, self.phase, self.loaded = system, phase, None
    self.class_names = tuple(class_names)
    params = jax.jit(system.fold)(state_lib.final_params(state))
    if self._has_threshold:
      params = dict(params, threshold=np.float32(system.config.nets.threshold))
    sizes = [s for s in cascade.SIZES if s < max_batch_size] + [max_batch_size]
    self._max_batch_size = max_batch_size
    after = self._after
    self._cost = after.cost
    stage_macs = self._cost.stages
    if not self.drops_layers:
      stage_macs = [int(after.stage_macs(i))
                    for i in range(system.num_exits)]
    predict = None if system.target is None else lambda outputs: outputs[:, 0]
    self._cascade = cascade.Cascade(
        after.programs(), params, system.rule, thresholds, stage_macs,
        image_macs=after.stage_macs if self.drops_layers else None,
        predict=predict, sizes=sizes)
    self._anytime = anytime.Anytime(self._cascade)
    self._every = every_exit.EveryExit(system, phase, max_batch_size)
    self.thresholds = thresholds

  def __repr__(self):
    layers = {'all': 'all', 'mask': 'the same for every image',
              'policy': 'a policy decides'}[self._after.decider]
    if self._has_threshold:
      layers += f', threshold={self.threshold:.4g}'
    thresholds = ', '.join(map(confidence.format_threshold, self.thresholds))
    return describe.classifier(self, self._max_batch_size, [
        f'layers: {layers}; phase {self.phase}',
        f'exits: {self.system.num_exits}, thresholds [{thresholds}] for '
        f'{self.system.config.exits.rule}',
        str(self._cost)])

  def __reduce__(self):
    return pickling.reduce(self.loaded, self.settings)

  @property
  def settings(self):
    """{attribute: value}, to be set in this order after loading."""
    if self.promise is not None:
      return dict(promise=self.promise)
    settings = dict(thresholds=self.thresholds)
    if self._has_threshold:
      settings['threshold'] = self.threshold
    return settings

  @property
  def system(self):
    """`System`."""
    return self._system

  @property
  def drops_layers(self):
    """Whether a policy drops layers, chosen for each image."""
    return self._after.decider == 'policy'

  @property
  def _after(self):
    return self._system.after(self.phase)

  @property
  def params(self):
    """Groups of parameters, folded, and `threshold` of a policy."""
    return self._cascade.params

  @property
  def thresholds(self):
    """[E - 1] float64: images with a confidence above the threshold leave.

    One number sets all of them. They are compared with the confidence of the
    config's `exits.rule`; entropy and differences are negated. They may be
    changed at any time without recompiling, which sets `promise` to None; but
    without `warm_up` a late stage is compiled when it first runs with a new
    batch size.

    Raises:
      ValueError: if their number is not E - 1, or one is out of the rule's
        range.
    """
    return self._cascade.thresholds

  @thresholds.setter
  def thresholds(self, value):
    confidence.check_range(self.system.config.exits.rule, value)
    self._cascade.thresholds = value
    self._promise = None

  @property
  def threshold(self):
    """The policy's threshold, in (0, 1): higher drops more layers.

    It may be changed at any time without recompiling, which sets `promise` to
    None.

    Raises:
      AttributeError: if no policy networks drop layers.
      ValueError: if the threshold is outside (0, 1).
    """
    self._check_policy()
    return float(self.params['threshold'])

  @threshold.setter
  def threshold(self, value):
    self._check_policy()
    knob_lib.KNOBS['networks'].check(value)
    self._cascade.params = dict(
        self.params, threshold=jax.device_put(np.float32(value)))
    self._promise = None

  @property
  def _has_threshold(self):
    return self.drops_layers and self.system.nets.decide == 'networks'

  def _check_policy(self):
    if not self._has_threshold:
      raise AttributeError('threshold is that of policy networks, but this '
                           'model has none; set thresholds')

  @property
  def promise(self):
    """`Promise` of the thresholds, or None without one.

    To set it sets the thresholds; None leaves them as they are.
    """
    return self._promise

  @promise.setter
  def promise(self, value):
    if value is not None:
      request.check_fits(
          value, exits=True, knob='threshold' if self._has_threshold else None,
          rule=self.system.config.exits.rule)
      self.thresholds = value.thresholds  # first: their number may not fit
      if self._has_threshold:
        self.threshold = value.number
    self._promise = value

  def read(self, path):
    """Reads an image file for the model, see `data.decode.read`."""
    return decode.read(path, self.system.config.data, self.system.model)

  def __call__(self, images):
    """Classifies images.

    Args:
      images: uint8 [B, S, S, C], for example from `read`.

    Returns:
      `CascadePrediction` of B images, in their order.

    Raises:
      ValueError: if the images have another size or dtype.
    """
    images = models.as_pixels(self.system.model, images)
    return self._cascade(images)

  def within(self, images, milliseconds, *, quantile=0.95):
    """Classifies images within a time budget, as far as it reaches.

    A stage starts only if it is expected to end in time; otherwise the last
    exit that was reached answers. The first exit always answers, in time or
    not. Images that are confident by `thresholds` leave early as usual.

    The times of the stages are measured by `time_stages`, at the latest in the
    first call with a number of images, where it is not part of the budget.
    Every call updates them, so that a busy machine is noticed. A promise does
    not cover images that the deadline stopped.

    Args:
      images: uint8 [B, S, S, C], B at most `max_batch_size`.
      milliseconds: the budget, positive.
      quantile: of the time of a stage, in (0, 1); higher is more often in time,
        and at a lower exit.

    Returns:
      `runtime.anytime.TimedPrediction`.

    Raises:
      ValueError: if the budget or the quantile is out of range, the model has a
        single exit, or the images have another size or dtype, or are too many.
    """
    start = time.perf_counter()
    milliseconds = anytime.check_budget(milliseconds)
    quantile = anytime.check_quantile(quantile)
    images = models.as_pixels(self.system.model, images)
    return self._anytime(images, milliseconds, quantile, start)

  def time_stages(self, images):
    """Compiles and times every stage, for `within`.

    Args:
      images: uint8 [B, S, S, C], B at most `max_batch_size`; like those to
        come if a policy drops layers, whose times depend on the images.

    Returns:
      [E] milliseconds until each exit answers for all B images, medians.

    Raises:
      ValueError: if the model has a single exit, or the images have another
        size or dtype, or are too many.
    """
    return self._anytime.measure(models.as_pixels(self.system.model, images))

  def at_exits(self, images, threshold=None):
    """Runs every exit on all images, see `every_exit.EveryExit.exits`."""
    images = models.as_pixels(self.system.model, images)
    params = self.params
    if threshold is not None:
      params = dict(params, threshold=np.float32(threshold))
    return self._every.exits(params, images)

  def full(self, images):
    """Returns the outputs [B, K] of the last exit without the policy."""
    images = models.as_pixels(self.system.model, images)
    return self._every.full(self.params, images)

  def warm_up(self):
    """Compiles every stage for every batch size in advance."""
    model = self.system.model
    self._cascade.warm_up(np.zeros(
        (1, model.image_size, model.image_size, model.channels), np.uint8))

  def stream(self, images, *, window=None):
    """Classifies a stream of images; each stage runs full batches.

    Args:
      images: iterable of uint8 [S, S, C], read no faster than needed.
      window: the most images that may be read but not yet yielded; None for 16
        times the largest batch.

    Returns:
      Iterator of the `CascadePrediction` of each image, in the order
      of the images. It raises a ValueError if one has another size or dtype.

    Raises:
      ValueError: if window is smaller than the largest batch.
    """
    return self._cascade.stream(self._checked(images), window=window)

  def _checked(self, images):
    for image in images:
      yield models.as_pixels(
          self.system.model, np.asarray(image)[None])[0]
