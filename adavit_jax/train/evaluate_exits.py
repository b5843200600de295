"""Outputs of all exits of a model on a whole split, image by image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.train import evaluate
from adavit_jax.train import mesh as mesh_lib


class ExitOutputs(NamedTuple):
  """Results of E exits on n images, NumPy.

  Attributes:
    prediction: class of the largest logit, [E, n].
    correct: [E, n] bool.
    loss: cross-entropy, [E, n].
    confidence: under the config's rule, larger is surer, [E, n].
  """
  prediction: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  confidence: np.ndarray

  def means(self):
    """Accuracy and loss of every exit, a dict of arrays [E]."""
    return dict(accuracy=self.correct.mean(1), loss=self.loss.mean(1))


class ExitEvaluator:
  """Runs all stages of a `StagedSystem` over splits."""

  def __init__(self, system, mesh, batch_size):
    """Prepares the program.

    Args:
      system: `StagedSystem`.
      mesh: from `mesh.make_mesh`.
      batch_size: images per batch, a multiple of the devices.

    Raises:
      ValueError: if the devices do not divide the batch.
    """
    mesh_lib.check_batch_size(batch_size, mesh, 'eval_batch_size')
    self._system, self._mesh, self._batch_size = system, mesh, batch_size
    self._run = jax.jit(
        self._outputs, out_shardings=mesh_lib.replicated(mesh))

  def __call__(self, vit, split):
    """`ExitOutputs` of the model with parameters `vit` on a `Split`."""
    parts = evaluate.collect(
        split, lambda images, labels, rows: self._run(vit, images, labels),
        self._mesh, self._batch_size)
    return ExitOutputs(*(x.T for x in parts))

  def _outputs(self, vit, images, labels):
    logits = self._system.exit_logits(vit, self._system.normalize(images))
    confidence = confidence_lib.confidences(self._system.rule, logits)
    prediction = logits.argmax(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.broadcast_to(labels, prediction.shape))
    # Images first, as they are collected.
    return [x.T for x in (prediction, prediction == labels, loss, confidence)]
