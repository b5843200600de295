"""Keeps the mean MACs of the learned policy at a target during training."""

import jax
import jax.numpy as jnp

from adavit_jax.policies import learned

# In logits. A step corrects at most this much.
_RANGE = 2.0
_STEPS = 16  # of the bisection, each of which halves the range


def missing_shift(macs_ratio, params, target):
  """Finds the shift of all logits at which a batch meets the target.

  Args:
    macs_ratio: function of the parameters of the policy networks that returns
      the mean MACs of a batch under their greedy actions, over the dense
      model's. They rise with a shift of the logits.
    params: parameters of the networks.
    target: target of `macs_ratio`.

  Returns:
    [] float32 in [-2, 2], without gradient.
  """
  params = jax.lax.stop_gradient(params)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    spends = macs_ratio(learned.shifted(params, middle)) > target
    return jnp.where(spends, low, middle), jnp.where(spends, middle, high)

  bounds = jnp.float32(-_RANGE), jnp.float32(_RANGE)
  low, high = jax.lax.fori_loop(0, _STEPS, halve, bounds)
  return (low + high) / 2


def shift(system, params, features, first, progress):
  """Returns the shift of the logits to apply in a step, [].

  A batch has its own mean, and its noise must not stay in the policy: the share
  of `missing_shift` that is applied falls to a tenth over the first 90 % of a
  phase.

  Args:
    system: `System`.
    params: parameters of the networks.
    features: `observation.Features` of a batch.
    first: the share in the first step, in [0, 1].
    progress: fraction of the phase that has passed, in [0, 1].
  """
  features = jax.lax.stop_gradient(features)
  def macs_ratio(params):
    return system.cost.ratio(system.decide(params, features)).mean()
  share = first * jnp.maximum(1 - progress, 0.1)
  return share * missing_shift(macs_ratio, params, system.config.mac_target)
