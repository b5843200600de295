"""Outputs of a model on a whole split, image by image."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adavit_jax.evaluation import batched
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.policies import observation
from adavit_jax.runtime import many_masks
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib


class Outputs(NamedTuple):
  """Results on n images, NumPy.

  Attributes:
    prediction: class of the largest total logit, [n].
    correct: [n] bool.
    loss: cross-entropy, [n].
    actions: `Actions` used, [n, L1], [n, L2].
  """
  prediction: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  actions: Actions

  @property
  def accuracy(self):
    return float(self.correct.mean())


class Evaluator:
  """Evaluates the last exit of a system on splits; programs compile once.

  It runs the `masked` mode, and several masks by `many_masks`; the other modes
  give the same results.
  """

  def __init__(self, system, mesh, batch_size):
    """Prepares the programs.

    Args:
      system: `System`.
      mesh: from `mesh.make_mesh`.
      batch_size: images per batch, a multiple of the number of devices.

    Raises:
      ValueError: if the batch size is not a multiple of the number of devices.
    """
    mesh_lib.check_batch_size(batch_size, mesh, 'eval_batch_size')
    self._system, self._mesh, self._batch_size = system, mesh, batch_size
    jit = functools.partial(jax.jit, out_shardings=mesh_lib.replicated(mesh))
    self._with_actions = jit(self._run_with_actions)
    self._adaptive = jit(self._run_adaptive)
    self._decisions = jit(lambda *args: tuple(self._decide(*args)[-1]))
    self._z1 = jit(self._run_z1)
    self._features = jit(self._run_features)
    self._moments = jit(self._run_moments)
    self._observe = jax.jit(self._run_observe, out_shardings=(
        mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)))
    self._begin = jax.jit(
        self._run_begin, out_shardings=mesh_lib.batch_sharding(mesh))
    self._finish = jit(self._run_finish)

  def with_actions(self, params, split, actions, num=None):
    """Classifies a split under given actions.

    Args:
      params: groups.
      split: `Split` of n images.
      actions: `Actions` of 0 and 1, [L1], [L2] for all images, or [n, L1],
        [n, L2].
      num: classifies up to so many evenly spaced images; None for all.

    Returns:
      `Outputs`.
    """
    every = [np.broadcast_to(a, (len(split), np.shape(a)[-1]))
             for a in actions]
    params = state_lib.model_params(params)
    return self._outputs(split, lambda images, labels, rows: self._with_actions(
        params, images, labels,
        Actions(*(a[rows].astype(np.float32) for a in every))),
        None if num is None else evenly(split, num))

  def dense(self, params, split, num=None):
    """Classifies a split with all layers, see `with_actions`: `Outputs`."""
    return self.with_actions(params, split, fixed.all_layers(
        plan.num_layers(self._system.model)), num)

  def with_masks(self, params, split, masks):
    """Classifies a split under each of several masks.

    What masks have in common from the first layer on runs once. The devices
    hold up to 2 + log2(C) activations of a batch.

    Args:
      params: groups.
      split: `Split`.
      masks: `Actions` of 0 and 1, [C, L1], [C, L2].

    Returns:
      List of C `Outputs`.
    """
    params = self._system.fold(state_lib.model_params(params))
    def run(images, labels, rows):
      begun = self._begin(params, images)
      return tuple(x.T for x in self._under(params, begun, labels, masks))

    columns = self._collect(split, run)
    every = (np.broadcast_to(a[:, None], (len(a), len(split), a.shape[1]))
             for a in map(np.asarray, masks))
    return [Outputs(*row, Actions(msa, mlp)) for *row, msa, mlp in zip(
        *(column.T for column in columns), *every)]

  def adaptive(self, params, split, *, knob):
    """Classifies a split under the learned policy.

    Args:
      params: groups, with the policy's.
      split: `Split`.
      knob: the policy's threshold, in (0, 1), or a value policy's price; a new
        number does not recompile.

    Returns:
      `Outputs`.
    """
    return self._outputs(split, lambda images, labels, rows: self._adaptive(
        params, images, labels, jnp.float32(knob)))

  def decisions(self, params, split, *, knob):
    """Returns the learned policy's actions, without running the layers.

    Args:
      params: as in `adaptive`.
      split: `Split` of n images.
      knob: as in `adaptive`.

    Returns:
      `Actions` [n, L1], [n, L2].
    """
    return Actions(*self._collect(
        split, lambda images, labels, rows: self._decisions(
            params, images, jnp.float32(knob))))

  def z1(self, params, split, num):
    """Returns z1 of up to `num` evenly spaced images.

    Returns:
      (activations, normalized images or None unless `plan.rereads_images`,
      labels [n]).
    """
    rows, params = evenly(split, num), state_lib.model_params(params)
    z1, images = self._collect(
        split, lambda images, labels, rows: self._z1(params, images), rows)
    return z1, images, split.labels[rows]

  def features(self, params, split, num):
    """Returns the policy's `Features` of up to `num` evenly spaced images."""
    return self._collect(split, lambda images, labels, rows: self._features(
        params, images), evenly(split, num))

  def success(self, params, split, masks, places=None):
    """Runs every one of a few masks on images of a split.

    Args:
      params: groups, with the policy's.
      split: `Split`.
      masks: `Actions` [C, L1], [C, L2].
      places: indices of the images, [n]; None for all.

    Returns:
      NumPy arrays: what a value policy observes, float32 [n, F]; probability of
      the true class, float32 [n, C]; whether the prediction is right, bool
      [n, C].
    """
    params = {**self._system.fold(state_lib.model_params(params)),
              **{name: params[name] for name in ('policy', 'policy_stats')}}

    def run(images, labels, rows):
      begun, observed = self._observe(params, images)
      _, correct, loss = self._under(params, begun, labels, masks)
      return observed, np.exp(-loss).T, correct.T

    return self._collect(split, run, places)

  def feature_stats(self, params, split, num):
    """Returns mean and standard deviation of the policy's features.

    They cover the images of `z1` and are accumulated batch by batch: the
    features of all images may not fit in host memory.

    Returns:
      `Stats` [F] of the features before scaling, NumPy float64.
    """
    params = state_lib.model_params(params)
    count, mean, squares = 0, 0., 0.  # squares: sum of squared deviations
    for valid, (batch_mean, batch_squares) in batched.run_batches(
        split, evenly(split, num), lambda images, labels, rows, valid: (
            self._moments(params, images, np.arange(len(rows)) < valid)),
        self._mesh, self._batch_size):
      difference = batch_mean.astype(np.float64) - mean
      total = count + valid
      mean = mean + difference * (valid / total)
      squares = squares + batch_squares + difference ** 2 * (
          count * valid / total)
      count = total
    return observation.Stats(mean, np.sqrt(squares / count))

  def _outputs(self, split, run, places=None):
    *columns, msa, mlp = self._collect(split, run, places)
    return Outputs(*columns, Actions(msa, mlp))

  def _collect(self, split, run, places=None):
    return batched.collect(
        split, run, self._mesh, self._batch_size, places)

  def _under(self, params, begun, labels, masks):
    """Runs masks on a batch: (prediction, correct, loss), each [C, B]."""
    z1, images = begun
    return many_masks.run(
        self._system.model, params, z1, masks,
        lambda x: self._finish(params, x, labels), images=images)

  def _run_begin(self, params, images):
    images = self._system.normalize(images)
    z1 = self._system.before_policy(params, images)
    return z1, images if plan.rereads_images(self._system.model) else None

  def _run_z1(self, params, images):
    return self._run_begin(self._system.fold(params), images)

  def _run_features(self, params, images):
    images, params = self._system.normalize(images), self._system.fold(params)
    return self._system.features(
        params, self._system.before_policy(params, images), images)

  def _run_moments(self, params, images, valid):
    """Mean, and sum of squared deviations, over the images with valid [B]."""
    z1, _ = self._run_z1(params, images)
    x = learned.token_features(self._system.nets, self._system.model, z1)
    valid = valid[:, None]
    mean = x.mean(0, where=valid)
    return mean, jnp.square(x - mean).sum(0, where=valid)

  def _run_observe(self, params, images):
    begun = self._run_begin(params, images)
    return begun, self._system.features(
        params, begun[0], self._system.normalize(images)).fixed

  def _run_finish(self, params, x, labels):
    return _outcome(
        modes.classify(self._system.model, params, x).total, labels)

  def _run_with_actions(self, params, images, labels, actions):
    images, params = self._system.normalize(images), self._system.fold(params)
    z1 = self._system.before_policy(params, images)
    return self._classify(params, z1, images, labels, actions)

  def _decide(self, params, images, knob):
    images, params = self._system.normalize(images), self._system.fold(params)
    z1 = self._system.before_policy(params, images)
    return params, images, z1, self._system.greedy(
        params, z1, images, knob)

  def _run_adaptive(self, params, images, labels, knob):
    params, images, z1, actions = self._decide(params, images, knob)
    return self._classify(params, z1, images, labels, actions)

  def _classify(self, params, z1, images, labels, actions):
    logits = self._system.classify(params, z1, images, actions).total
    return *_outcome(logits, labels), *actions


def _outcome(logits, labels):
  """Returns (prediction, whether it is right, cross-entropy), each [B]."""
  prediction = logits.argmax(-1)
  return (prediction, prediction == labels,
          optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def evenly(split, num):
  """Returns the indices of up to `num` evenly spaced images of a split."""
  return np.linspace(0, len(split) - 1, min(num, len(split))).astype(int)
