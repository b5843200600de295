"""A trained model as a Python function: images in, predictions out."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from adavit_jax import describe
from adavit_jax import models
from adavit_jax.data import decode
from adavit_jax.inference import batch_sizes
from adavit_jax.inference import pickling
from adavit_jax.inference import predict
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.params import check_key
from adavit_jax.policies import fixed
from adavit_jax.policies import knob as knob_lib
from adavit_jax.promise import request
from adavit_jax.runtime import forks
from adavit_jax.train import state as state_lib


class Prediction(NamedTuple):
  """Results of a `Classifier` on B images, in their order; NumPy arrays.

  Attributes:
    logits: [B, K] float32; for a distilled model the mean of both heads.
    labels: [B] int, the class of the largest logit.
    actions: `Actions` [B, L1], [B, L2], the layers that ran.
    macs: [B], multiply-accumulates of the layers that ran, over all tokens.
  """
  logits: np.ndarray
  labels: np.ndarray
  actions: Actions
  macs: np.ndarray

  def __repr__(self):
    return describe.record(self, labels=describe.values, actions=describe.kept,
                           macs=describe.mean_macs)


class Classifier:
  """Runs a `System` on batches of any size, in the fastest mode.

  A learned or stochastic policy runs in mode `cond` for one image and `compact`
  for more; given actions run in `static`. Batches are padded to one of a few
  sizes, each compiled on first use; under a policy, padding drops every
  adaptive layer. One that `adavit_jax.load` made is pickled as a reference to
  its run, which is loaded again where it is unpickled.

  Attributes:
    class_names: K strings, or () if the run has none.
    threshold: the threshold of policy networks, in (0, 1): higher drops more
      layers. It may be changed at any time without recompiling, which sets
      `promise` to None.
    price: the price of a value policy, positive: as the threshold.
    params: groups, folded for inference.
    loaded: `pickling.Loaded`, or None if it was not loaded from a run.
  """
  EXPORTS = ('dense', 'static', 'cond', 'compact', 'weights')  # see export
  # Slots make mistyped attributes, such as `thresholds`, errors.
  __slots__ = ('class_names', 'params', 'loaded', '_system', '_actions',
               '_number', '_sizes', '_programs', '_promise', '_mask', '_guard')

  def __init__(self, system, state, *, actions=None, class_names=(),
               max_batch_size=256):
    """Takes the parameters from a state.

    Args:
      system: `System`.
      state: `State` of the system.
      actions: see the property `actions`.
      class_names: K strings.
      max_batch_size: larger batches are split.

    Raises:
      ValueError: if max_batch_size is not a positive integer, or as the
        property `actions`.
    """
    batch_sizes.check(max_batch_size)
    self._system, self.class_names = system, tuple(class_names)
    self._programs, self._guard, self.loaded = {}, forks.Guard(), None
    self.actions = actions
    params = state_lib.final_params(state)
    self._number = (system.config.nets.threshold if system.nets is None
                    else float(system.knob(params)))
    self.params = jax.jit(system.fold)(params)
    self._sizes = batch_sizes.up_to(max_batch_size)

  def __repr__(self):
    if self.actions is None:
      layers = (f'a policy decides, {self.knob.name}={self.number:.4g}; cond '
                f'for one image, compact for more')
    elif isinstance(self.actions, fixed.Stochastic):
      layers = f'{self.actions}; cond for one image, compact for more'
    else:
      kept, num = int(self.actions.num_kept), self.actions.keep.size
      layers = f'{kept} of {num} that may be dropped, of every image; static'
    return describe.classifier(self, self._sizes[-1], [
        f'layers: {layers}', str(self._cost)])

  def __reduce__(self):
    return pickling.reduce(self.loaded, self.settings)

  @property
  def settings(self):
    """{attribute: value}, to be set in this order after loading."""
    settings = dict(actions=self.actions)
    if self.promise is not None:
      settings['promise'] = self.promise
    elif self.system.nets is not None:
      settings[self.knob.name] = self.number
    return settings

  @property
  def system(self):
    """`System`."""
    return self._system

  @property
  def actions(self):
    """How layers are chosen: `Actions`, `fixed.Stochastic` or None.

    None: the learned policy decides. To set it, give None, the number of a
    policy of Table 1, a mask, or a `Stochastic`: see `fixed.choose`. It may be
    changed at any time. Each mask is compiled on first use and then kept; all
    `Stochastic` share one program.

    Raises:
      ValueError: if the value does not fit the layers, or is None but there is
        no policy.
    """
    return self._actions

  @property
  def knob(self):
    """The `Knob` of the policy; its number may be read and set by its name."""
    nets = self._system.nets
    return knob_lib.KNOBS[nets.decide if nets else 'networks']

  @property
  def number(self):
    """The number of `knob`, in its range."""
    return self._number

  @property
  def threshold(self):
    return self._of('threshold')

  @threshold.setter
  def threshold(self, number):
    self._set('threshold', number)

  @property
  def price(self):
    return self._of('price')

  @price.setter
  def price(self, number):
    self._set('price', number)

  def _set(self, name, number):
    self._of(name)
    self.knob.check(number)
    if self._promise is not None and self._promise.number is None:
      self.actions = None  # all layers ran for that promise only
    self._number, self._promise = float(number), None

  def _of(self, name):
    if self.system.nets is None:
      raise AttributeError(f'{name} is for a policy, but this model has none; '
                           f'set actions')
    if name != self.knob.name:
      raise AttributeError(f'{name} is not for this policy; set '
                           f'{self.knob.name}')
    return self._number

  @actions.setter
  def actions(self, value):
    if value is not None:
      value = fixed.choose(value, plan.num_layers(self.system.model))
    elif self.system.nets is None:
      raise ValueError('actions=None needs a policy, but this system has none; '
                       'give actions, for example fixed.all_layers(...)')
    self._actions, self._promise = value, None
    # Once, since a call of a small model takes less than a millisecond.
    self._mask = (value.keep.tobytes() if isinstance(value, Actions) else None)

  @property
  def promise(self):
    """`Promise` of the policy's number, or None without one.

    To set it sets the number, or all layers if the promise has none; None
    leaves them as they are.
    """
    return self._promise

  @promise.setter
  def promise(self, value):
    if value is not None:
      request.check_fits(value, exits=False,
                         knob=self.system.nets and self.knob.name)
      if value.number is None:
        self.actions = fixed.all_layers(plan.num_layers(self.system.model))
      else:
        self.actions = None
        self._set(value.knob, value.number)
    self._promise = value

  @property
  def _cost(self):
    system = self.system
    return system.cost if self.actions is None else system.plain_cost

  def _program(self, key):
    """Returns the program of the current actions, (batch, valid, start) -> out.

    Raises:
      ValueError: as `__call__` for the key.
    """
    actions, params = self.actions, self.params
    draws = isinstance(actions, fixed.Stochastic)
    if draws:
      check_key(key)
    elif key is not None:
      raise ValueError(f'key={key!r} is for a Stochastic policy only, but '
                       f'actions={actions}; leave it out')
    if actions is None:
      run = self._jitted('learned', predict.predict, None)
      return lambda batch, valid, start: run(
          params, batch, valid, np.float32(self._number))
    params = state_lib.model_params(params)  # each array argument slows a call
    if draws:
      run = self._jitted('stochastic', predict.predict_stochastic)
      return lambda batch, valid, start: run(
          params, batch, valid, np.float32(actions.final), key, start)
    run = self._jitted(self._mask, predict.predict, actions)
    return lambda batch, valid, start: run(params, batch, valid, None)

  def _jitted(self, name, function, *args):
    """Jits a function once for each name."""
    if name not in self._programs:
      self._programs[name] = jax.jit(
          functools.partial(function, self.system, *args))
    return self._programs[name]

  def read(self, path):
    """Reads an image file for the model, see `data.decode.read`."""
    return decode.read(path, self.system.config.data, self.system.model)

  def warm_up(self):
    """Compiles the program for every batch size in advance."""
    model = self.system.model
    shape = (model.image_size, model.image_size, model.channels)
    key = (jax.random.key(0) if isinstance(self.actions, fixed.Stochastic)
           else None)
    for size in self._sizes:
      self(np.zeros((size, *shape), np.uint8), key=key)

  def __call__(self, images, *, key=None):
    """Classifies images.

    Args:
      images: uint8 [B, S, S, C], for example from `read`.
      key: PRNG key for a `Stochastic`, else None. The layers of an image depend
        on the key and its place among the images.

    Returns:
      `Prediction`.

    Raises:
      ValueError: if the images have another size or dtype, or a key is
        missing, invalid or not needed.
    """
    images = models.as_pixels(self.system.model, images)
    return self._run(self._program(key), images, self._cost)

  @property
  def within(self):
    raise AttributeError('within a budget, a model with a single exit has no '
                         'earlier answer; load a model with several exits')

  def at(self, images, number):
    """Classifies images under the policy with another number than `number`."""
    images = models.as_pixels(self.system.model, images)
    self.knob.check(number)
    run = self._jitted('learned', predict.predict, None)
    return self._run(lambda batch, valid, start: run(
        self.params, batch, valid, np.float32(number)), images,
        self.system.cost)

  def decisions(self, images, numbers):
    """Returns which layers the policy keeps under each of T numbers.

    Args:
      images: uint8 [B, S, S, C].
      numbers: [T].

    Returns:
      [B, T, L1 + L2] of 0 and 1, MSA then MLP; no other layer is run.
    """
    images = models.as_pixels(self.system.model, images)
    numbers, run = np.asarray(numbers, np.float32), self._jitted(
        'decisions', predict.decisions)
    self._guard.check()
    return batch_sizes.run(lambda batch, valid, start: run(
        self.params, batch, numbers), images, self._sizes)

  def full(self, images):
    """Returns the logits [B, K] of the model with all its layers."""
    images = models.as_pixels(self.system.model, images)
    every = Actions(*map(np.asarray, fixed.all_layers(
        plan.num_layers(self.system.model))))
    run = self._jitted(every.keep.tobytes(), predict.predict, every)
    params = state_lib.model_params(self.params)
    return self._run(lambda batch, valid, start: run(
        params, batch, valid, None), images, self.system.plain_cost).logits

  def _run(self, run, images, cost):
    self._guard.check()
    logits, actions = batch_sizes.run(run, images, self._sizes)
    return Prediction(logits, logits.argmax(-1), actions,
                      cost.adaptive(actions))
