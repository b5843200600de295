"""Rewards and the policy gradient, as pure functions (US 12,394,190).

The whole loss of a step is `train.phases.policy.policy_gradient`.

Shapes: S samples per image, B images, L1 MSA and L2 MLP droppable layers.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions


def drop_reward(actions):
  """Shares of dropped layers, the first two terms of equation 12.

  The patent prints a 2-norm in the second term. For 0/1 actions we take the
  number of kept layers, as in equation 16.

  Args:
    actions: `Actions` [..., L1], [..., L2].

  Returns:
    (1 - |a1| / L1, 1 - |a2| / L2), each [...].
  """
  return 1 - actions.msa.mean(-1), 1 - actions.mlp.mean(-1)


def layer_reward(actions, correct, alpha):
  """Shares of dropped MSA and MLP layers + α x accuracy (equation 12), [...].
  """
  msa, mlp = drop_reward(actions)
  return msa + mlp + alpha * correct


def split_actions(actions):
  """Each network's actions alone, with all layers of the other kind.

  Args:
    actions: `Actions` [..., L1], [..., L2].

  Returns:
    (`Actions` of a1 and ones, `Actions` of ones and a2): what the accuracies in
    equations 15 and 16 are measured under.
  """
  msa, mlp = actions
  return Actions(msa, jnp.ones_like(mlp)), Actions(jnp.ones_like(msa), mlp)


def split_rewards(actions, correct, alpha):
  """One reward for each network (equations 15 and 16), ([...], [...]).

  Args:
    actions: `Actions` [..., L1], [..., L2].
    correct: pair of 0/1 correctness [...], under each of `split_actions`.
    alpha: α, weight of the accuracy.
  """
  return tuple(drop + alpha * right
               for drop, right in zip(drop_reward(actions), correct))


def mac_reward(macs_ratio, success, price):
  """Success minus the price of the MACs, [...].

  Args:
    macs_ratio: MACs as a share of the dense model's, [...].
    success: probability of the true class, or 0/1 correctness, [...].
    price: μ, the success that justifies the MACs of the dense model.
  """
  return success - price * macs_ratio


def self_critical(reward, greedy_reward):
  """Advantage over the reward of the greedy action: [S, B], [B] -> [S, B]."""
  return reward - greedy_reward


def leave_one_out(reward):
  """Advantage over the mean of the other samples: [S, B] -> [S, B], S > 1."""
  num = reward.shape[0]
  return (reward - reward.mean(0)) * num / (num - 1)


def policy_gradient_loss(log_likelihood, advantage):
  """-mean(advantage x log π), whose gradient is that of equation 13.

  The mean is over samples and images. The gradient estimates that of the
  negative expected reward of one image.

  Args:
    log_likelihood: log π of each sampled action vector, [S, B].
    advantage: reward minus a baseline that does not depend on the action of
      that sample, [S, B]; treated as a constant.
  """
  return -(jax.lax.stop_gradient(advantage) * log_likelihood).mean()


def curriculum(progress, num_layers, share):
  """Layers that the policy may drop so far in the phase, the last ones first.

  Args:
    progress: fraction of the phase that has passed, in [0, 1].
    num_layers: (L1, L2).
    share: fraction of the phase over which layers are freed; 0 frees all at the
      start.

  Returns:
    `Actions` [L1], [L2]: 1 for free layers, 0 for layers that must run.
  """
  def free(num):
    if not share:
      return jnp.ones(num)
    num_free = jnp.ceil(jnp.clip(progress / share, 0, 1) * num)
    num_free = jnp.maximum(num_free, 1)
    return (jnp.arange(num) >= num - num_free).astype(jnp.float32)
  return Actions(*map(free, num_layers))
