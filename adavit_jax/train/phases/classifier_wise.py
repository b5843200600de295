"""Trains all added exits on a frozen backbone, in one forward pass.

No gradient reaches the backbone or passes between exits. If a policy decides,
layers are dropped as at inference. With `views`, the backbone runs before the
first step, once on so many augmented views of every training image.
"""

from typing import NamedTuple

import jax

from adavit_jax.models import params as params_lib
from adavit_jax.train import ranges
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


class Reading(NamedTuple):
  """What the loss needs of the frozen model.

  Attributes:
    tokens: what each added head reads, [B, N, D] in the compute dtype.
    last: logits [B, K] of the last exit; None without `distill`.
  """
  tokens: tuple[jax.Array, ...]
  last: jax.Array | None


def reading(system, params, images):
  """Runs the frozen model; see `Phase.reads`.

  Args:
    system: `System`.
    params: groups.
    images: [B, S, S, C], normalized.

  Returns:
    `Reading`.
  """
  folded, carry, tokens = system.frozen(params), None, []
  stages = system.after('classifier_wise').stages(
      'masked', at_exit=params_lib.exit_reading)
  for e, stage in zip(system.exits, stages):
    carry, out = stage(folded, images, carry)
    if e.head:
      tokens.append(out)
  distill = system.config.classifier_wise.distill
  return Reading(tuple(tokens), out if distill else None)


def loss(system, params, state, batch, key, done):
  """Returns the sum of the added exits' losses; see `Phase.loss`.

  With `distill`, they learn from the last exit too.
  """
  del state, key, done
  added = [e for e in system.exits if e.head]
  outputs = [params_lib.head_logits(system.model, params, x, e)
             for e, x in zip(added, batch.read.tokens)]
  each = exit_losses.distilled(
      system, system.config.classifier_wise, outputs, batch.read.last, batch)
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
PHASE = Phase(loss, trains=('heads',), mean=True, reads=reading, exits=True,
              check=check,
              defaults=dict(OPTIMIZER, **exit_losses.DISTILL_DEFAULTS,
                            clip_norm=0.0, views=0),
              ranges=dict(exit_losses.DISTILL_RANGES, views=ranges.NATURAL))
