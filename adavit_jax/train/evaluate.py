"""Outputs of a model on a whole split, image by image."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adavit_jax.models.actions import Actions
from adavit_jax.policies import inputs
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib


class Outputs(NamedTuple):
  """Results on n images, NumPy.

  Attributes:
    prediction: class of the largest total logit, [n].
    correct: [n] bool.
    loss: cross-entropy, [n].
    keep: actions taken, MSA then MLP, [n, 2L].
  """
  prediction: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  keep: np.ndarray

  @property
  def accuracy(self):
    return float(self.correct.mean())

  @property
  def actions(self):
    return Actions.from_keep(self.keep)


class Evaluator:
  """Runs a system over splits; every program compiles once.

  Accuracy is measured in the `masked` mode, which the others equal.
  """

  def __init__(self, system, mesh, batch_size):
    """Prepares the programs.

    Args:
      system: `System`.
      mesh: from `mesh.make_mesh`.
      batch_size: images per batch, a multiple of the devices.

    Raises:
      ValueError: if the devices do not divide the batch.
    """
    mesh_lib.check_batch_size(batch_size, mesh, 'eval_batch_size')
    self._system, self._mesh, self._batch_size = system, mesh, batch_size
    jit = functools.partial(jax.jit, out_shardings=mesh_lib.replicated(mesh))
    self._given = jit(self._run_given)
    self._adaptive = jit(self._run_adaptive)
    self._decisions = jit(lambda *args: (self._decide(*args)[1].keep,))
    self._z1 = jit(self._run_z1)

  def given(self, vit, split, keep):
    """Classifies a split under given actions.

    Args:
      vit: parameters of the ViT.
      split: `Split` of n images.
      keep: 0/1 actions, [2L] for all images or [n, 2L].

    Returns:
      `Outputs`.
    """
    keep = np.broadcast_to(keep, (len(split), np.shape(keep)[-1]))
    return Outputs(*self._collect(
        split, lambda images, labels, rows: self._given(
            vit, images, labels, keep[rows].astype(np.float32))))

  def dense(self, vit, split):
    """`given` with all layers."""
    return self.given(
        vit, split, np.ones(2 * self._system.model.num_adaptive))

  def adaptive(self, params, stats, split, *, threshold):
    """Classifies a split under the learned policy.

    Args:
      params: {'vit': ..., 'policy': ...}.
      stats: `inputs.Stats`.
      split: `Split`.
      threshold: the policy's threshold in (0, 1); does not recompile.

    Returns:
      `Outputs`.
    """
    return Outputs(*self._collect(
        split, lambda images, labels, rows: self._adaptive(
            params, stats, images, labels, jnp.float32(threshold))))

  def decisions(self, params, stats, split, *, threshold):
    """What the learned policy would run, without running it.

    Args:
      params: as in `adaptive`.
      stats: as in `adaptive`.
      split: `Split` of n images.
      threshold: as in `adaptive`.

    Returns:
      `Actions` [n, L].
    """
    keep, = self._collect(split, lambda images, labels, rows: self._decisions(
        params, stats, images, jnp.float32(threshold)))
    return Actions.from_keep(keep)

  def z1(self, vit, split, num):
    """z1 and labels of up to `num` evenly spaced images: [n, N, D], [n]."""
    rows = _evenly(split, num)
    return (np.concatenate(list(self._z1_of(vit, split, rows))),
            split.labels[rows])

  def token_features(self, vit, split, num):
    """`inputs.token_features` of `z1`, a batch after the other: [n, F]."""
    return np.concatenate([
        inputs.token_features(z1, self._system.nets.tokens)
        for z1 in self._z1_of(vit, split, _evenly(split, num))])

  def _z1_of(self, vit, split, rows):
    for i in range(0, len(rows), self._batch_size):
      yield mesh_lib.fetch(
          self._z1(vit, split.images(rows[i:i + self._batch_size])))

  def _collect(self, split, run):
    return collect(split, run, self._mesh, self._batch_size)

  def _run_z1(self, vit, images):
    return modes.fixed(self._system.model, vit, self._system.normalize(images))

  def _run_given(self, vit, images, labels, keep):
    return self._outputs(vit, self._run_z1(vit, images), labels,
                         Actions.from_keep(keep))

  def _decide(self, params, stats, images, threshold):
    z1 = self._run_z1(params['vit'], images)
    features = self._system.features(params, z1, stats)
    return z1, learned.greedy(self._system.nets, params['policy'], features,
                              threshold=threshold)

  def _run_adaptive(self, params, stats, images, labels, threshold):
    z1, actions = self._decide(params, stats, images, threshold)
    return self._outputs(params['vit'], z1, labels, actions)

  def _outputs(self, vit, z1, labels, actions):
    logits = self._system.classify(vit, z1, actions).total
    prediction = logits.argmax(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Outputs(prediction, prediction == labels, loss, actions.keep)


def _evenly(split, num):
  return np.linspace(0, len(split) - 1, min(num, len(split))).astype(int)


def collect(split, run, mesh, batch_size):
  """Runs a program over a split in batches of one size.

  Args:
    split: `Split` of n images.
    run: (images uint8 [B, H, W, C], labels [B], rows [B]) -> arrays [B, ...],
      replicated; rows are the images' places in the split.
    mesh: from `mesh.make_mesh`.
    batch_size: B of all processes together.

  Returns:
    List of NumPy arrays [n, ...].
  """
  processes, index = jax.process_count(), jax.process_index()
  parts = []
  for start in range(0, len(split), batch_size):
    rows = np.minimum(np.arange(start, start + batch_size), len(split) - 1)
    mine = np.split(rows, processes)[index]
    images, labels = mesh_lib.shard_batch(
        (split.images(mine), split.labels[mine]), mesh)
    valid = min(batch_size, len(split) - start)
    parts.append([x[:valid] for x in mesh_lib.fetch(run(images, labels, rows))])
  return [np.concatenate(x) for x in zip(*parts)]
