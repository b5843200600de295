"""Phase 3: REINFORCE on both policy networks, the ViT frozen (figure 6)."""

import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import reinforce
from adavit_jax.runtime import modes
from adavit_jax.train import losses

TRAINS = ('policy',)


def loss(system, params, state, batch, key, progress):
  """Loss of the policy phase; arguments and result as in `dense.loss`."""
  c, vit = system.config.policy, state.params['vit']
  z1 = jax.lax.stop_gradient(modes.fixed(system.model, vit, batch.images))
  free = reinforce.curriculum(
      progress, system.model.num_adaptive, c.curriculum)
  features = system.features(
      {'vit': vit, 'policy': params['policy']}, z1, state.stats)
  return policy_gradient(
      system, c, params['policy'], vit, z1, features, state.log_price, batch,
      key, free)


def policy_gradient(system, c, policy, vit, z1, features, log_price, batch, key,
                    free):
  """The REINFORCE loss with its entropy bonus and auxiliary classifier.

  Args:
    system: `System`.
    c: config of the phase: reward, alpha, samples, baseline, bound, entropy,
      price_rate, aux, normalize.
    policy: parameters of the policy networks, the only ones with a gradient.
    vit: parameters of the ViT.
    z1: [B, N, D].
    features: `inputs.Features` of z1.
    log_price: log μ, [].
    batch: `Batch`.
    key: PRNG key.
    free: encoders that the curriculum has freed, [L].

  Returns:
    (loss [], (metrics, updates of state fields)).
  """
  nets, cost = system.nets, system.cost
  z1, vit = jax.lax.stop_gradient((z1, vit))
  keys = jax.random.split(key, c.samples)
  draw = lambda key: learned.sample(
      nets, policy, features, key, bound=c.bound, free=free)
  actions = jax.lax.stop_gradient(jax.vmap(draw)(keys))  # [S, B, L]
  greedy = learned.greedy(nets, policy, features, free=free)  # [B, L]

  def reward(actions):  # [R, B, L] -> each network's reward, parts: [R, B]
    num = actions.msa.shape[0]
    # Images before samples: the rows stay on the chips that hold the images.
    rows = Actions(*(a.swapaxes(0, 1).reshape(-1, a.shape[-1])
                     for a in actions))
    logits = system.classify(vit, jnp.repeat(z1, num, axis=0), rows).total
    p = jax.nn.softmax(logits).reshape(-1, num, logits.shape[-1])
    p = p.swapaxes(0, 1)  # [R, B, K]
    correct = (p.argmax(-1) == batch.labels).astype(jnp.float32)
    success = jnp.take_along_axis(p, batch.labels[None, :, None], 2)[..., 0]
    if c.reward == 'macs':
      r = reinforce.mac_reward(cost.ratio(actions), success, jnp.exp(log_price))
      return r, r, correct, success
    if c.reward == 'layers':
      r = reinforce.layer_reward(actions, correct, c.alpha)
      return r, r, correct, success
    rewards = reinforce.split_rewards(actions, correct, c.alpha)
    return *rewards, correct, success

  if c.baseline == 'greedy':
    both = Actions(*(jnp.concatenate([a, g[None]])
                     for a, g in zip(actions, greedy)))
    *rewards, correct, success = reward(both)
    advantages = [reinforce.self_critical(r[:-1], r[-1]) for r in rewards]
    rewards = [r[:-1] for r in rewards]
    correct, success = correct[:-1], success[:-1]
  else:
    *rewards, correct, success = reward(actions)
    advantages = [reinforce.leave_one_out(r) for r in rewards]

  logits = jax.vmap(
      lambda a: learned.action_logits(nets, policy, features, a))(actions)
  s = Actions(*(learned.bounded(x, c.bound) for x in logits))
  total = 0.
  for net_s, net_actions, advantage in zip(s, actions, advantages):
    log_p = (learned.log_likelihood(net_s, net_actions) * free).sum(-1)
    if c.normalize:
      advantage = advantage / jnp.maximum(advantage.std(), 1e-3)
    total += reinforce.surrogate(log_p, advantage)
  entropy = (learned.entropy(s.keep) * jnp.tile(free, 2)).sum(-1).mean()
  total -= c.entropy * entropy

  macs_ratio = cost.ratio(greedy).mean()
  metrics = {
      'reward': (rewards[0] + rewards[1]).mean() / 2,
      'reward_std': rewards[0].std(),
      'sample_accuracy': correct.mean(),
      'macs_ratio': macs_ratio,
      'sample_macs_ratio': cost.ratio(actions).mean(),
      'policy_entropy': entropy / (2 * free.sum()),
      'dropped_msa': 1 - actions.msa.mean(),
      'dropped_mlp': 1 - actions.mlp.mean(),
      'success': success.mean(),
      'unique_actions': num_unique(greedy.keep),
      'keep_msa': greedy.msa.mean(0),
      'keep_mlp': greedy.mlp.mean(0),
  }
  updates = {}
  if c.reward == 'macs':
    metrics['price'] = jnp.exp(log_price)
    # It rests while layers run that the policy may not drop yet.
    updates['log_price'] = reinforce.update_price(
        log_price, macs_ratio, system.config.mac_target,
        c.price_rate * free.min())
  if nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += c.aux * aux
    metrics['aux_loss'] = aux
  return total, (metrics, updates)


def num_unique(keep):
  """Number of distinct rows of a 0/1 array [B, 2L], as a traced scalar."""
  # A random odd weight per column makes a hash; 2L can be more than 32 bits.
  weights = jax.random.bits(jax.random.key(0), keep.shape[-1:]) | 1
  hashes = jnp.sort((keep.astype(jnp.uint32) * weights).sum(-1))
  return 1 + (hashes[1:] != hashes[:-1]).sum()
