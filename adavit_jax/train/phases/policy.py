"""Phase 3: REINFORCE on both policy networks with a frozen model (figure 6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import reinforce
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train.phases import budget
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase
from adavit_jax.train.phases.phase import choice


def loss(system, params, state, batch, key, done):
  """Returns the loss of the policy phase; see `Phase.loss`."""
  c = system.config.policy
  frozen = {**system.frozen(params), 'policy': params['policy']}
  z1 = system.before_policy(frozen, batch.images)
  free = reinforce.curriculum(
      done / c.steps, plan.num_layers(system.model), c.curriculum)
  features = system.features(frozen, z1, batch.images)
  return policy_gradient(
      system, c, frozen, z1, features, state.log_price, batch, key,
      done / c.steps, free)


def policy_gradient(system, c, params, z1, features, log_price, batch, key,
                    progress, free=None):
  """Returns the REINFORCE loss with entropy bonus and auxiliary classifier.

  -mean(advantage x log π(actions)) - c.entropy x entropy(π) + c.aux x (the
  cross-entropy of the auxiliary classifier), where advantage is the reward of
  the actions minus a baseline (equations 12 to 16).

  S actions are sampled per image, and R are tried: with the greedy baseline
  R = S + 1, the greedy ones last, else R = S. The reward 'split' runs the model
  twice for each, see `run_rewarded`.

  Args:
    system: `System`.
    c: config of the phase: reward, alpha, samples, baseline, bound, entropy,
      price_rate, shift_rate, aux, normalize.
    params: groups, folded; only the policy's have a gradient.
    z1: activations where the policy decides.
    features: `observation.Features` of z1.
    log_price: log μ, [].
    batch: `Batch`.
    key: PRNG key.
    progress: fraction of the phase that has passed, in [0, 1].
    free: `Actions` [L1], [L2], 1 for layers that the curriculum allows to drop;
      None for all.

  Returns:
    (loss [], (metrics, updates, see `Phase.loss`)).
  """
  nets, policy = system.nets, params['policy']
  if free is None:
    free = Actions(*map(jnp.ones, nets.num_layers))
  z1, params = jax.lax.stop_gradient((z1, params))
  sampled = sample(nets, c, policy, features, key, free)  # [S, B, ...]
  greedy = system.decide(policy, features, free=free)  # [B, ...]
  tried = sampled
  if c.baseline == 'greedy':
    tried = Actions(*(jnp.concatenate([a, g[None]])
                      for a, g in zip(sampled, greedy)))  # [R, B, ...]

  results = run_rewarded(system, c, params, z1, batch, tried)
  rewards = reward(c, tried, results, system.cost, jnp.exp(log_price))
  advantages = [advantage(c, r) for r in rewards]
  rl_loss, entropy = reinforce_loss(
      nets, c, policy, features, sampled, advantages, free)
  total = rl_loss - c.entropy * entropy

  results, rewards = jax.tree.map(
      lambda x: x[..., :c.samples, :], (results, rewards))
  metrics = {
      'reward': (rewards[0] + rewards[1]).mean() / 2,
      'reward_std': rewards[0].std(),
      'sample_accuracy': results.correct.mean(),
      'sample_macs_ratio': system.cost.ratio(sampled).mean(),
      'policy_entropy': entropy / free.num_kept,
      'dropped_msa': 1 - sampled.msa.mean(),
      'dropped_mlp': 1 - sampled.mlp.mean(),
      'success': results.success.mean(),
      **greedy_metrics(greedy, system.cost),
  }
  updates = {}
  if c.reward == 'macs':
    metrics['price'] = jnp.exp(log_price)
    # Both are fixed while the curriculum keeps some layers on.
    all_free = free.keep.min()
    missing = budget.missing_shift(system, policy, features)
    updates['shift'] = all_free * budget.share(c.shift_rate, progress) * missing
    updates['log_price'] = budget.update_price(
        log_price, missing, all_free * c.price_rate)
  if nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += c.aux * aux
    metrics['aux_loss'] = aux
  return total, (metrics, updates)


def sample(nets, c, policy, features, key, free):
  """Samples S action vectors per image: `Actions` [S, B, L1], [S, B, L2]."""
  draw = lambda key: learned.sample(
      nets, policy, features, key, bound=c.bound, free=free)
  keys = jax.random.split(key, c.samples)
  return jax.lax.stop_gradient(jax.vmap(draw)(keys))


class Results(NamedTuple):
  """Results of the model on B images under R action vectors each.

  Attributes:
    correct: 1 if the class of the largest logit is correct, else 0, [R, B].
    success: probability of the true class, [R, B].
  """
  correct: jax.Array
  success: jax.Array


def run_tried(system, params, z1, batch, actions):
  """Runs the model under `Actions` [R, B, L1], [R, B, L2]: `Results`."""
  num = actions.msa.shape[0]
  rows = Actions(*(a.swapaxes(0, 1).reshape(-1, a.shape[-1])
                   for a in actions))  # [B R, ...]
  logits = system.repeated(params, z1, batch.images, rows, num)  # [B, R, K]
  p = jax.nn.softmax(logits).swapaxes(0, 1)  # [R, B, K]
  correct = (p.argmax(-1) == batch.labels).astype(jnp.float32)
  success = jnp.take_along_axis(p, batch.labels[None, :, None], 2)[..., 0]
  return Results(correct, success)


def run_rewarded(system, c, params, z1, batch, actions):
  """Runs the model as the reward needs it.

  Args:
    system: `System`.
    c: config of the phase.
    params: groups, folded.
    z1: activations of B images.
    batch: `Batch`.
    actions: `Actions` [R, B, L1], [R, B, L2].

  Returns:
    `Results` [R, B]. For the reward 'split' [2, R, B]: under the actions of the
    MSA network with all MLP layers, and of the MLP network with all MSA layers.
  """
  if c.reward != 'split':
    return run_tried(system, params, z1, batch, actions)
  both = Actions(*map(jnp.concatenate, zip(*reinforce.split_actions(actions))))
  results = run_tried(system, params, z1, batch, both)  # [2 R, B]
  return jax.tree.map(lambda x: x.reshape(2, -1, x.shape[-1]), results)


def reward(c, actions, results, cost, price):
  """Returns the rewards of the MSA and the MLP network, each [R, B].

  Args:
    c: config of the phase.
    actions: `Actions` [R, B, L1], [R, B, L2].
    results: from `run_rewarded` under these actions.
    cost: `Cost` with the policy networks.
    price: μ, [].
  """
  if c.reward == 'split':
    return reinforce.split_rewards(actions, results.correct, c.alpha)
  if c.reward == 'layers':
    shared = reinforce.layer_reward(actions, results.correct, c.alpha)
  else:
    shared = reinforce.mac_reward(cost.ratio(actions), results.success, price)
  return shared, shared


def advantage(c, rewards):
  """Returns rewards [R, B] minus their baseline, if any: [S, B]."""
  result = rewards
  if c.baseline == 'greedy':
    result = reinforce.self_critical(rewards[:-1], rewards[-1])
  elif c.baseline == 'leave_one_out':
    result = reinforce.leave_one_out(rewards)
  if c.normalize:
    result = result / jnp.maximum(result.std(), 1e-3)
  return result


def reinforce_loss(nets, c, policy, features, actions, advantages, free):
  """Returns the loss of equation 13, summed over both networks.

  -mean(advantage x log π(actions)), where π is the product of the bounded
  probabilities of the free layers.

  Args:
    nets: `PolicyNets`.
    c: config of the phase.
    policy: parameters of the networks.
    features: `observation.Features` of B images.
    actions: sampled `Actions` [S, B, L1], [S, B, L2].
    advantages: [S, B] for each network.
    free: `Actions` [L1], [L2].

  Returns:
    (loss [], entropy of π in nats [], a mean over samples and images).
  """
  logits = jax.vmap(lambda a: learned.action_logits(
      nets, policy, features, a))(actions)
  total = entropy = 0.
  for x, a, f, adv in zip(logits, actions, free, advantages):
    s = learned.bounded(x, c.bound)  # [S, B, L]
    log_p = (learned.log_likelihood(s, a) * f).sum(-1)
    total += reinforce.policy_gradient_loss(log_p, adv)
    entropy += (learned.entropy(s) * f).sum(-1).mean()
  return total, entropy


def greedy_metrics(actions, cost):
  """Returns metrics of the policy's greedy `Actions` [B, L1], [B, L2]."""
  return {'macs_ratio': cost.ratio(actions).mean(),
          'unique_actions': num_unique(actions.keep),
          'keep_msa': actions.msa.mean(0),
          'keep_mlp': actions.mlp.mean(0)}


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
  choice(f'{name}.baseline', c.baseline, ('leave_one_out', 'greedy', 'none'))
  if c.baseline == 'leave_one_out' and c.samples < 2:
    raise ValueError(f'{name}.samples={c.samples}: the leave_one_out baseline '
                     f'needs at least 2; or set baseline=greedy or none')


RL_DEFAULTS = dict(
    reward='macs', alpha=2.5, samples=4, baseline='leave_one_out', bound=0.95,
    price=0.3,  # the first, if neither a warm start nor init.workdir sets one
    entropy=0.002, price_rate=0.05, shift_rate=0.2, aux=1.0,
    normalize=True)  # divide advantages by their standard deviation
# Rows of results that are in memory at once.
SAMPLES = lambda x: 1 <= x <= 1024, 'must be in [1, 1024]'
# Up to 0.5, probabilities do not rise with the logits: see `learned.bounded`.
BOUND = lambda x: 0.5 < x <= 1, 'must be in (0.5, 1]'
RL_RANGES = dict(
    alpha=ranges.WEIGHT, samples=SAMPLES, entropy=ranges.WEIGHT,
    price=ranges.PRICE, price_rate=ranges.WEIGHT, shift_rate=ranges.SHARE,
    aux=ranges.WEIGHT, bound=BOUND)

PHASE = Phase(
    loss, trains=('policy',), teacher=True, decides='policy',
    check=lambda system: check('policy', system),
    defaults=dict(OPTIMIZER, learning_rate=3e-3, weight_decay=0.0,
                  curriculum=0.0, **RL_DEFAULTS),
    ranges=dict(RL_RANGES, curriculum=ranges.SHARE))
