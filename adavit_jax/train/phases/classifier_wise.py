"""Trains all added exits on a frozen backbone, in one forward pass.

No gradient reaches the backbone or passes between exits. If a policy decides,
layers are dropped as at inference.
"""

from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the sum of the added exits' losses; see `Phase.loss`.

  With `distill`, they learn from the last exit too.
  """
  del state, key, done
  folded, carry, outputs = system.fold(params), None, []
  stages = system.after('classifier_wise').stages('masked')
  for e, stage in zip(system.exits, stages):
    carry, y = stage(folded, batch.images, carry)
    if e.head:
      outputs.append(y)
  each = exit_losses.distilled(
      system, system.config.classifier_wise, outputs, y, batch)
  total = sum(each)
  return total, (exit_losses.metrics(system, total, outputs, each, batch), {})


def check(system):
  """Raises a ValueError for a model without added exits."""
  if not system.model.exits:
    raise ValueError(f"phase 'classifier_wise' trains model.exits, but "
                     f'{system.config.model.name!r} has none; set for example '
                     f'--config.model.exits="((2,\'mlp\'),)"')
  exit_losses.check_distill('classifier_wise', system)


# No clipping: a common norm would couple the gradients of the heads.
PHASE = Phase(loss, trains=('heads',), exits=True, check=check,
              defaults=dict(OPTIMIZER, **exit_losses.DISTILL_DEFAULTS,
                            clip_norm=0.0),
              ranges=exit_losses.DISTILL_RANGES)
