"""A trained model as a Python function: images in, predictions out."""

import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax import describe
from adavit_jax import models
from adavit_jax.data import decode
from adavit_jax.exits import confidence
from adavit_jax.inference.cascade_classifier import CascadeClassifier
from adavit_jax.inference.cascade_classifier import check_max_batch_size
from adavit_jax.models import actions as actions_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runs import run as run_lib
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib


class Prediction(NamedTuple):
  """What a `Classifier` says of B images, in the caller's order; NumPy arrays.

  Attributes:
    logits: [B, K] float32; the sum of both heads of a distilled model.
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
  """Runs a `System` on batches of any size, in the mode that saves time.

  One image runs in the mode `cond`, more of them in `compact`; a policy that
  does not look at the image runs in `static`. Batches are padded to one of a
  few sizes, each compiled at its first use; under a learned policy, what stands
  in for an image drops every adaptive layer. It cannot be pickled: another
  process loads its own.

  Attributes:
    class_names: K strings, or () where the run has none.
    threshold: the policy's, in (0, 1): higher drops more. It may be changed at
      any time and recompiles nothing.
    params: groups, folded for inference.
  """
  EXPORTS = ('dense', 'static', 'cond', 'compact')  # modes of deploy.export
  # A mistyped attribute, `thresholds` for one, is an error.
  __slots__ = ('class_names', 'threshold', 'params', '_system', '_actions',
               '_sizes', '_cost', '_run')

  def __init__(self, system, state, *, actions=None, class_names=(),
               max_batch_size=256):
    """Takes the parameters from a state.

    Args:
      system: `System`.
      state: `State` of it.
      actions: `Actions` [L1], [L2] to run on every image, of array-likes; None
        asks the learned policy.
      class_names: K strings.
      max_batch_size: larger batches are split.

    Raises:
      ValueError: for a max_batch_size below 1, actions that are not 0 and 1 of
        these shapes, or none where there is no policy.
    """
    check_max_batch_size(max_batch_size)
    if actions is not None:
      actions = Actions(*map(np.asarray, actions_lib.checked(
          actions, None, plan.num_layers(system.model), gates=False)))
    elif system.nets is None:
      raise ValueError('actions=None asks a policy, and this system has none; '
                       'give actions, fixed.all_layers(...) for example')
    self._system, self.class_names = system, tuple(class_names)
    self.threshold = system.config.nets.threshold
    params = state_lib.final_params(state)
    if actions is not None:  # fewer arrays to pass at each call
      params = state_lib.model_params(params)
    self.params = jax.jit(system.fold)(params)
    self._actions = actions
    self._sizes = batch_sizes(max_batch_size)
    self._cost = system.cost if actions is None else system.plain_cost
    self._run = jax.jit(functools.partial(predict, system, actions))

  def __repr__(self):
    if self.actions is None:
      layers = (f'a policy decides, threshold={self.threshold}; cond for one '
                f'image, compact for more')
    else:
      kept, num = int(self.actions.num_kept), self.actions.keep.size
      layers = f'{kept} of {num} that may be dropped, of every image; static'
    return describe.classifier(self, self._sizes[-1], [
        f'layers: {layers}', str(self._cost)])

  @property
  def system(self):
    """`System`."""
    return self._system

  @property
  def actions(self):
    """`Actions` [L1], [L2] of every image, or None: the policy decides."""
    return self._actions

  def read(self, path):
    """An image file as the model takes it, see `data.decode.read`."""
    return decode.read(path, self.system.config.data, self.system.model)

  def warm_up(self):
    """Compiles for every batch size, so that no call has to."""
    model = self.system.model
    shape = (model.image_size, model.image_size, model.channels)
    for size in self._sizes:
      self(np.zeros((size, *shape), np.uint8))

  def __call__(self, images):
    """Classifies images.

    Args:
      images: uint8 [B, S, S, C], of files for example as `read` gives them.

    Returns:
      `Prediction`.

    Raises:
      ValueError: for images of another size or type, or a threshold outside
        (0, 1).
    """
    images = models.as_pixels(self.system.model, images)
    check_threshold(self.threshold)
    largest, parts = self._sizes[-1], []
    for start in range(0, len(images), largest):
      batch = images[start:start + largest]
      num = len(batch)
      size = next(s for s in self._sizes if s >= num)
      if num < size:  # padding copies
        batch = np.pad(batch, [(0, size - num), *[(0, 0)] * 3])
      out = self._run(self.params, batch, np.arange(size) < num,
                      np.float32(self.threshold))
      parts.append(out)
      if len(parts) > 2:  # so that no more than three parts lie on the device
        parts[-3] = jax.device_get(parts[-3])
    # Only the last part is padded.
    join = lambda *x: (
        np.concatenate(x) if len(x) > 1 else x[0])[:len(images)]
    logits, actions = jax.tree.map(join, *jax.device_get(parts))
    return Prediction(logits, logits.argmax(-1), actions,
                      self._cost.adaptive(actions))


def load(workdir, *, phase='', best=False, actions=None, rule=None,
         thresholds=None, max_batch_size=256):
  """Makes a `Classifier` of a trained run, on a device of this process.

  In a job of several processes each one, or only some, may call it.

  Args:
    workdir: directory of the run.
    phase: end of this phase; '' for the newest checkpoint.
    best: the best checkpoint of the last phase instead.
    actions: `Actions` [L1], [L2] for every image, instead of the run's own
      choice.
    rule: replaces the config's `exits.rule`, of a model with exits.
    thresholds: of a model with exits, see `CascadeClassifier.thresholds`; None
      lets no image leave early.
    max_batch_size: images that run at once; larger batches are split.

  Returns:
    A `Classifier`: of the learned policy after the phases warm_start, policy
    and joint, of the mask of a static phase, else of all layers. Its threshold
    is the config's `nets.threshold`; eval.py prints one calibrated to the
    config's `mac_target`. Of a model with exits, and of a regression, a
    `CascadeClassifier`; eval.py prints thresholds for it and writes them to
    report.json.

  Raises:
    ValueError: if there is no such run, a rule is unknown, thresholds do not
      fit it, the model has no exits to use them, or exits and no use for
      actions, and as `Classifier`.
  """
  with run_lib.Run(workdir, alone=True) as run:
    info, system, state = run_lib.reread(lambda: _read(
        run, phase, best, actions, rule, thresholds))
  class_names = info['dataset']['class_names']
  if system.staged:
    if thresholds is None:
      thresholds = confidence.NEVER
    return CascadeClassifier(
        system, state, info['phase'], thresholds=thresholds,
        class_names=class_names, max_batch_size=max_batch_size)
  if actions is None:
    actions = system.actions(info['phase'])
  return Classifier(system, state, actions=actions, class_names=class_names,
                    max_batch_size=max_batch_size)


def _read(run, phase, best, actions, rule, thresholds):
  """(info, `System`, `State`) of one checkpoint; arguments as in `load`."""
  saved = run.find(phase=phase, best=best)
  info = saved.info
  if not phase:
    run.warn_of_unfinished()
  if rule is not None:
    info['config']['exits']['rule'] = rule
  system = run_lib.system(info)
  exits = system.staged
  unused = dict(actions=actions) if exits else dict(
      rule=rule, thresholds=thresholds)
  for name, value in unused.items():
    if value is not None:
      kind, held = (('without exits', 'one') if exits else
                    ('with exits', 'none'))
      raise ValueError(f'{name}={value!r} is for a model {kind}, and '
                       f'{run.workdir} holds {held}; leave it out')
  return info, system, run.state(saved, system, mesh_lib.local_mesh())


def predict(system, actions, params, images, valid, threshold):
  """The whole classifier as a pure function, to be jitted.

  Args:
    system: `System`.
    actions: `Actions` [L1], [L2] of NumPy arrays, or None for the learned
      policy.
    params: groups, folded.
    images: uint8 [B, S, S, C].
    valid: [B] bool, False for padding.
    threshold: the policy's, [].

  Returns:
    (logits [B, K], `Actions` [B, L1], [B, L2]).
  """
  images = system.normalize(images)
  z1 = system.fixed(params, images)
  mode = 'static'
  if actions is None:
    actions = system.greedy(params, z1, images, threshold)
    actions = Actions(*(a * valid[:, None] for a in actions))
    mode = 'cond' if images.shape[0] == 1 else 'compact'
  logits = modes.adaptive(
      system.model, params, z1, actions, mode, images=images).total
  return logits, Actions(*(
      jnp.broadcast_to(a, (images.shape[0], a.shape[-1])) for a in actions))


def check_threshold(value):
  """Raises a ValueError unless `value` is one number in (0, 1)."""
  if not (isinstance(value, (numbers.Real, np.ndarray, jax.Array))
          and np.ndim(value) == 0 and 0 < value < 1):
    raise ValueError(f'threshold={value!r} must be a number in (0, 1)')


def batch_sizes(largest):
  """1, 2, 3, 4, 6, 8, 12, ... up to `largest`: padding is below a third."""
  sizes = {largest}
  for base in (1, 3):
    size = base
    while size < largest:
      sizes.add(size)
      size *= 2
  return sorted(sizes)
