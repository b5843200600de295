"""How a model runs after a training phase: its layers, its stages and MACs."""

import dataclasses
import functools
from typing import Any

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.runtime import stages as stages_lib
from adavit_jax.train import phases
from adavit_jax.train.phases import static


@dataclasses.dataclass(frozen=True)
class AfterPhase:
  """A system with the layers chosen as at the end of a phase.

  Attributes:
    system: `System`.
    phase: one of the config's phases.
  """
  system: Any
  phase: str

  @property
  def decider(self):
    """How layers are chosen: 'all' run, a 'mask' or the 'policy'."""
    return phases.decider(self.system.config, self.phase)

  @property
  def actions(self):
    """`Actions` [L1], [L2] of every image; None if the policy decides."""
    if self.decider == 'policy':
      return None
    if self.decider == 'mask':
      return static.at_inference(self.system)
    return fixed.all_layers(plan.num_layers(self.system.model))

  @property
  def cost(self):
    """`Cost` with all layers, and with the policy networks if they run."""
    system = self.system
    return system.cost if self.decider == 'policy' else system.plain_cost

  def stages(self, mode=None, **options):
    """Returns E functions (params, images, carry) -> (carry, outputs).

    Args:
      mode: see `stages.stages`; 'masked' for training, None for inference.
      **options: at_exit, see `stages.stages`.

    Returns:
      As `stages.stages`; images and outputs [B, K] are normalized. The policy's
      threshold is `params['threshold']`; by default, the config's.
    """
    decide = self._decide if self.decider == 'policy' else None
    return self._stages(decide, mode, **options)

  def _stages(self, decide, mode, **options):
    return stages_lib.stages(
        self.system.model, decide=decide,
        actions=self.actions if self.decider == 'mask' else None, mode=mode,
        inference=mode is None, **options, **self.system.scan)

  def _decide(self, params, z1, images):
    return self.system.greedy(params, z1, images, params.get('threshold'))

  def programs(self, mode=None):
    """Returns `stages` from uint8 images to outputs in the target's unit."""
    return [functools.partial(_program, self.system, stage)
            for stage in self.stages(mode)]

  def full_programs(self):
    """Returns `programs` without the policy; a static mask stays."""
    return [functools.partial(_program, self.system, stage)
            for stage in self._stages(None, None)]

  @property
  def full_macs(self):
    """MACs of an image without early exits and policy; a static mask stays."""
    cost = self.system.plain_cost
    return (float(cost.adaptive(self.actions)) if self.decider == 'mask'
            else cost.dense)

  def stage_macs(self, index, carry=None):
    """Returns the MACs of a stage: [], or [B] if a policy decides per image.

    Args:
      index: index of the stage.
      carry: the stage's new carry; only the policy's actions are read from it.
    """
    model, actions = self.system.model, None
    if self.decider == 'mask':
      actions = self.actions
    elif (self.decider == 'policy'
          and plan.spans(model)[index][1] > model.num_fixed):
      actions = Actions(*carry[1])
    return self.cost.stage(index, actions)


def _program(system, stage, params, images, carry):
  # Each stage normalizes: uint8 pixels take a quarter of the memory of floats.
  carry, y = stage(params, system.normalize(images), carry)
  return carry, system.task.denormalize(y)
