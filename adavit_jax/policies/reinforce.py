"""Rewards and the policy gradient, as pure functions (US 12,394,190).

Letters: S samples per image, B batch, L1 MSA and L2 MLP layers to drop.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions

PRICES = 1e-3, 20.  # between which the controller keeps the price μ of MACs


def drop_reward(actions):
  """Shares of dropped layers, the first two terms of equation 12.

  Args:
    actions: `Actions` [..., L1], [..., L2].

  Returns:
    (1 - |a1| / L1, 1 - |a2| / L2), each [...]. The patent prints a 2-norm in
    the second term; for 0/1 actions the count of equation 16 is meant.
  """
  return 1 - actions.msa.mean(-1), 1 - actions.mlp.mean(-1)


def layer_reward(actions, correct, alpha):
  """Equation 12: dropped MSA and MLP shares + α x accuracy, [...]."""
  msa, mlp = drop_reward(actions)
  return msa + mlp + alpha * correct


def split_rewards(actions, correct, alpha):
  """Equations 15 and 16: one reward for each network, ([...], [...]).

  The patent takes the accuracy under the MSA actions for one and under the MLP
  actions for the other; here both have that of the path that was run, with the
  actions of both, which costs one pass.
  """
  msa, mlp = drop_reward(actions)
  return msa + alpha * correct, mlp + alpha * correct


def mac_reward(macs_ratio, success, price):
  """Success minus the price of what was computed, [...].

  Args:
    macs_ratio: MACs as a share of the dense model's, [...].
    success: probability of the true class, or 0/1 correctness, [...].
    price: μ, the success that one whole dense model must buy.
  """
  return success - price * macs_ratio


def self_critical(reward, greedy_reward):
  """Advantage over the greedy action's reward: [S, B], [B] -> [S, B]."""
  return reward - greedy_reward


def leave_one_out(reward):
  """Advantage over the mean of the other samples: [S, B] -> [S, B], S > 1."""
  num = reward.shape[0]
  return (reward - reward.mean(0)) * num / (num - 1)


def surrogate(log_likelihood, advantage):
  """A loss whose gradient is the policy gradient of equation 13.

  The mean over samples and images of -advantage x log π, so that its gradient
  estimates that of the negative expected reward of one image.

  Args:
    log_likelihood: log π of each sampled action vector, [S, B].
    advantage: reward minus a baseline that does not depend on that sample's
      action, [S, B]; taken as a constant.
  """
  return -(jax.lax.stop_gradient(advantage) * log_likelihood).mean()


def curriculum(progress, num_layers, share):
  """Which layers are free at this point of the phase: the last ones first.

  Args:
    progress: share of the phase that has passed, in [0, 1].
    num_layers: (L1, L2).
    share: share of the phase over which they are freed; 0 frees all at once.

  Returns:
    `Actions` of 0 and 1, [L1], [L2].
  """
  def free(num):
    if not share:
      return jnp.ones(num)
    num_free = jnp.ceil(jnp.clip(progress / share, 0, 1) * num)
    num_free = jnp.maximum(num_free, 1)
    return (jnp.arange(num) >= num - num_free).astype(jnp.float32)
  return Actions(*map(free, num_layers))


def update_price(log_price, macs_ratio, target, rate):
  """The slow controller of the MAC target: log μ += rate x (MACs - target).

  Args:
    log_price: log μ.
    macs_ratio: mean MACs of the batch as a share of the dense model's.
    target: what that mean should be.
    rate: step; too fast, the price runs to its cap and the policy goes blind.

  Returns:
    The new log μ, μ kept in `PRICES`.
  """
  log_price = log_price + rate * (macs_ratio - target)
  return jnp.clip(log_price, *map(jnp.log, PRICES))
