"""All exits and the backbone learn at once: end-to-end training."""

from adavit_jax.train import ranges
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Weighted sum of the exits' losses (RAViT, equation 1); see `Phase.loss`."""
  del state, done
  outputs, stats = exit_losses.outputs(system, params, batch, key)
  each = exit_losses.each(system, outputs, batch)
  total = sum(w * x for w, x in zip(system.weights, each))
  return total, (exit_losses.metrics(system, total, outputs, each, batch),
                 system.updates(stats))


PHASE = Phase(
    loss, trains=('backbone', 'heads'), from_scratch=True, exits=True,
    defaults=dict(
        OPTIMIZER, weights=(1.,),  # of the exits' losses, see System.weights
        rule='entropy',  # see exits.confidence.RULES
        slack=0.005,  # accuracy that a cascade may lose; or the target's unit
        policy=False),  # the policy of init.workdir drops layers too
    ranges=dict(slack=ranges.WEIGHT))
