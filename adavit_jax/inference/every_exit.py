"""Runs every exit of a loaded model on images in memory, for a promise."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.inference import batch_sizes
from adavit_jax.runtime import forks


class AtExits(NamedTuple):
  """Outputs of E exits on n images, NumPy.

  Attributes:
    prediction: class, or number in the target's unit, [E, n].
    confidence: under the config's rule, [E, n].
    macs: MACs of each stage alone, [E, n].
  """
  prediction: np.ndarray
  confidence: np.ndarray
  macs: np.ndarray


class EveryExit:
  """The programs of `CascadeClassifier` without early exits."""

  def __init__(self, system, phase, largest):
    """Prepares the programs; they are compiled on first use.

    Args:
      system: `System`.
      phase: the layers are chosen as at the end of this phase.
      largest: the largest batch size.
    """
    self._after, self._sizes = system.after(phase), batch_sizes.up_to(largest)
    self._exits = jax.jit(functools.partial(_exits, self._after))
    self._full = jax.jit(functools.partial(_full, self._after))
    self._guard = forks.Guard()

  def exits(self, params, images):
    """Runs images uint8 [n, S, S, C] through every stage: `AtExits`."""
    return AtExits(*(x.T for x in self._run(self._exits, params, images)))

  def full(self, params, images):
    """Returns the outputs of the last exit without the policy, [n, K]."""
    return self._run(self._full, params, images)

  def _run(self, program, params, images):
    self._guard.check()
    return batch_sizes.run(
        lambda batch, valid, start: program(params, batch), images,
        self._sizes)


def _exits(after, params, images):
  system, carry, memory, rows = after.system, None, None, []
  for k, stage in enumerate(after.programs()):
    carry, outputs = stage(params, images, carry)
    confidence, memory = system.rule(outputs, memory)
    macs = jnp.broadcast_to(after.stage_macs(k, carry), confidence.shape)
    rows.append((system.task.predict(outputs), confidence, macs))
  return [jnp.stack(x, axis=1) for x in zip(*rows)]


def _full(after, params, images):
  carry = outputs = None
  for stage in after.full_programs():
    carry, outputs = stage(params, images, carry)
  return outputs
