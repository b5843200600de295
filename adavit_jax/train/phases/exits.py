"""End-to-end training of the backbone and all exits."""

from adavit_jax.train import ranges
from adavit_jax.train import training_pass
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the weighted sum of the exits' losses (RAViT, equation 1).

  With `distill`, all exits but the last learn from the last one too. See
  `Phase.loss`.
  """
  del state
  c = system.config.exits
  outputs, stats = exit_losses.outputs(
      system, params, batch, key, done / c.steps)
  *early, last = outputs
  each = [*exit_losses.distilled(system, c, early, last, batch),
          *exit_losses.each(system, [last], batch)]
  total = sum(w * x for w, x in zip(system.weights, each))
  return total, (exit_losses.metrics(system, total, outputs, each, batch),
                 training_pass.updates(stats))


PHASE = Phase(
    loss, trains=('backbone', 'heads'), mean=True, from_scratch=True,
    exits=True, check=lambda system: exit_losses.check_distill('exits', system),
    defaults=dict(
        OPTIMIZER, **exit_losses.DISTILL_DEFAULTS,
        weights=(1.,),  # weights of the losses, see System.weights
        rule='entropy',  # see exits.confidence.RULES
        slack=0.005,  # score that a cascade may lose: accuracy, or target unit
        policy=False),  # whether the policy of init.workdir drops layers too
    ranges=dict(exit_losses.DISTILL_RANGES, slack=ranges.WEIGHT))
