"""Phase 3: REINFORCE on both policy networks with a frozen model (figure 6)."""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import reinforce
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase
from adavit_jax.train.phases.phase import choice


def loss(system, params, state, batch, key, done):
  """Returns the loss of the policy phase; see `Phase.loss`."""
  c = system.config.policy
  frozen = {**system.frozen(params), 'policy': params['policy']}
  z1 = system.fixed(frozen, batch.images)
  free = reinforce.curriculum(
      done / c.steps, plan.num_layers(system.model), c.curriculum)
  features = system.features(frozen, z1, batch.images)
  return policy_gradient(
      system, c, frozen, z1, features, state.log_price, batch, key, free)


def policy_gradient(system, c, params, z1, features, log_price, batch, key,
                    free=None):
  """Returns the REINFORCE loss with entropy bonus and auxiliary classifier.

  Args:
    system: `System`.
    c: config of the phase: reward, alpha, samples, baseline, bound, entropy,
      price_rate, aux, normalize.
    params: groups, folded; only the policy's have a gradient.
    z1: activations where the policy decides.
    features: `observation.Features` of z1.
    log_price: log μ, [].
    batch: `Batch`.
    key: PRNG key.
    free: `Actions` [L1], [L2], 1 for layers that the curriculum allows to drop;
      None for all.

  Returns:
    (loss [], (metrics, updates of state fields)).
  """
  nets, cost, policy = system.nets, system.cost, params['policy']
  if free is None:
    free = Actions(*map(jnp.ones, nets.num_layers))
  z1, params = jax.lax.stop_gradient((z1, params))
  keys = jax.random.split(key, c.samples)
  draw = lambda key: learned.sample(
      nets, policy, features, key, bound=c.bound, free=free)
  actions = jax.lax.stop_gradient(jax.vmap(draw)(keys))  # [S, B, ...]
  greedy = system.decide(policy, features, free=free)  # [B, ...]

  def reward(actions):  # [R, B, ...] -> each network's reward, parts: [R, B]
    num = actions.msa.shape[0]
    rows = Actions(*(a.swapaxes(0, 1).reshape(-1, a.shape[-1])
                     for a in actions))
    p = jax.nn.softmax(system.repeated(params, z1, batch.images, rows, num))
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
  entropy = 0.
  for net_s, net_actions, net_free, advantage in zip(
      s, actions, free, advantages):
    log_p = (learned.log_likelihood(net_s, net_actions) * net_free).sum(-1)
    entropy += (learned.entropy(net_s) * net_free).sum(-1).mean()
    if c.normalize:
      advantage = advantage / jnp.maximum(advantage.std(), 1e-3)
    total += reinforce.policy_gradient_loss(log_p, advantage)
  total -= c.entropy * entropy

  macs_ratio = cost.ratio(greedy).mean()
  metrics = {
      'reward': (rewards[0] + rewards[1]).mean() / 2,
      'reward_std': rewards[0].std(),
      'sample_accuracy': correct.mean(),
      'macs_ratio': macs_ratio,
      'sample_macs_ratio': cost.ratio(actions).mean(),
      'policy_entropy': entropy / free.num_kept,
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
    # The price is fixed while the curriculum keeps some layers on.
    updates['log_price'] = reinforce.update_price(
        log_price, macs_ratio, system.config.mac_target,
        c.price_rate * free.keep.min())
  if nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += c.aux * aux
    metrics['aux_loss'] = aux
  return total, (metrics, updates)


def num_unique(keep):
  """Counts the distinct rows of a 0/1 array [B, L1 + L2]: a traced scalar."""
  # Random odd weights hash the rows: more than 32 columns do not fit 32 bits.
  weights = jax.random.bits(jax.random.key(0), keep.shape[-1:]) | 1
  hashes = jnp.sort((keep.astype(jnp.uint32) * weights).sum(-1))
  return 1 + (hashes[1:] != hashes[:-1]).sum()


def check(name, system):
  """Raises a ValueError for an invalid reward or baseline."""
  c = system.config[name]
  choice(f'{name}.reward', c.reward, ('macs', 'layers', 'split'))
  choice(f'{name}.baseline', c.baseline, ('leave_one_out', 'greedy'))
  if c.baseline == 'leave_one_out' and c.samples < 2:
    raise ValueError(f'{name}.samples={c.samples}: the leave_one_out baseline '
                     f'needs at least 2; or set baseline=greedy')


RL_DEFAULTS = dict(
    reward='macs', alpha=2.5, samples=4, baseline='leave_one_out', bound=0.95,
    entropy=0.002, price=0.3, price_rate=0.02, aux=1.0,
    normalize=True)  # divide advantages by their standard deviation
RL_RANGES = dict(
    alpha=ranges.WEIGHT, samples=ranges.COUNT, entropy=ranges.WEIGHT,
    price=ranges.PRICE, price_rate=ranges.WEIGHT, aux=ranges.WEIGHT,
    bound=(lambda x: 0.5 < x <= 1, 'must be in (0.5, 1]'))

PHASE = Phase(
    loss, trains=('policy',), teacher=True, decides='policy',
    check=lambda system: check('policy', system),
    defaults=dict(OPTIMIZER, learning_rate=3e-3, weight_decay=0.0,
                  curriculum=0.0, **RL_DEFAULTS),
    ranges=dict(RL_RANGES, curriculum=ranges.SHARE))
