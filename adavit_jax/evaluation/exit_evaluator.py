"""Outputs of all exits on a whole split, for validation and reports."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.evaluation import batched
from adavit_jax.train import mesh as mesh_lib


class ExitOutputs(NamedTuple):
  """Results of E exits on n images, NumPy.

  Attributes:
    prediction: class of the largest logit, or number in the target's unit,
      [E, n].
    score: 1 if the class is correct, else 0, or minus the absolute error,
      [E, n].
    loss: loss of the task without label smoothing, [E, n].
    confidence: confidence under the config's rule, [E, n].
    macs: MACs of each stage alone, without dropped layers, [E, n].
  """
  prediction: np.ndarray
  score: np.ndarray
  loss: np.ndarray
  confidence: np.ndarray
  macs: np.ndarray


class ExitEvaluator:
  """Evaluates all exits of a system on splits."""

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
    self._run = jax.jit(self._outputs, static_argnums=0,
                        out_shardings=mesh_lib.replicated(mesh))

  def __call__(self, phase, params, split):
    """Runs all stages on all images.

    Args:
      phase: the layers are chosen as at the end of this phase.
      params: groups.
      split: `Split` of n images.

    Returns:
      `ExitOutputs`.
    """
    parts = batched.collect(
        split, lambda images, labels, rows: self._run(
            phase, params, images, labels), self._mesh, self._batch_size)
    outputs = ExitOutputs(*(x.T for x in parts))
    # A float32 mean of many images can exceed their largest score.
    return outputs._replace(score=outputs.score.astype(np.float64))

  def metrics(self, score):
    """Returns the task's metrics {name: [...]} of scores [..., n]."""
    return self._system.task.metrics(score)

  def _outputs(self, phase, params, images, labels):
    system, task = self._system, self._system.task
    after = system.after(phase)
    images, params = system.normalize(images), system.fold(params)
    carry, memory, rows = None, None, []
    for k, stage in enumerate(after.stages('masked')):
      carry, outputs = stage(params, images, carry)
      loss = task.loss_of_labels(outputs, labels)
      outputs = task.denormalize(outputs)
      confidence, memory = system.rule(outputs, memory)
      prediction = task.predict(outputs)
      macs = jnp.broadcast_to(after.stage_macs(k, carry), labels.shape)
      rows.append((prediction, task.score(prediction, labels), loss,
                   confidence, macs))
    # The image axis comes first, as `collect` expects.
    return [jnp.stack(x, axis=1) for x in zip(*rows)]
