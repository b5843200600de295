"""Keeps the mean MACs of the policy networks at a target during training.

Before training, `runs.phase_start` sets the price of MACs; at the end of a
phase, `runs.phase_end` meets the target on held-out images.
"""

import jax
import jax.numpy as jnp

from adavit_jax.policies import learned
from adavit_jax.policies import value

_STEPS = 16  # of the bisection


def missing_shift(system, params, features, limit=2.0):
  """Finds the shift of all logits at which a batch meets the MAC target.

  Args:
    system: `System`.
    params: parameters of the networks.
    features: `observation.Features` of the batch.
    limit: the largest shift, in logits.

  Returns:
    [] float32 in [-limit, limit], without gradient.
  """
  params, features = jax.lax.stop_gradient((params, features))

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    actions = system.decide(learned.shifted(params, middle), features)
    spends = system.cost.ratio(actions).mean() > system.config.mac_target
    return jnp.where(spends, low, middle), jnp.where(spends, middle, high)

  bounds = jnp.float32(-limit), jnp.float32(limit)
  low, high = jax.lax.fori_loop(0, _STEPS, halve, bounds)
  return (low + high) / 2


def share(first, progress):
  """Share of the missing shift to apply in a step, [].

  A batch has its own mean, and its noise must not stay in the policy: the share
  falls to a tenth over the first 90 % of a phase.

  Args:
    first: the share in the first step, in [0, 1].
    progress: fraction of the phase that has passed, in [0, 1].
  """
  return first * jnp.maximum(1 - progress, 0.1)


def update_price(log_price, missing_shift, rate):
  """Updates the price: log μ -= rate x missing shift.

  A shift that keeps missing shows that the reward pulls the MACs away from
  their target: the price is wrong.

  Args:
    log_price: log μ.
    missing_shift: shift of all logits at which a batch meets the MAC target.
    rate: step size; if it is too large, the price saturates at its maximum and
      the policy ignores the image.

  Returns:
    The new log μ, with μ clipped to `value.PRICES`.
  """
  return jnp.clip(log_price - rate * missing_shift,
                  *map(jnp.log, value.PRICES))
