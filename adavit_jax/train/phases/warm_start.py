"""Phase 2: supervised training of both policy networks with a frozen model.

A value head predicts the probability that the model is correct under each of a
few dozen masks of a greedy search (`mask_search.candidates`). For each image,
the networks imitate the mask with the largest value minus price x MACs. The
price is solved for in every batch so that the mean MACs meet the target.
"""

import jax
import jax.numpy as jnp
import optax

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import reinforce
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the loss of the warm start; see `Phase.loss`."""
  del done
  c, nets = system.config.warm_start, system.nets
  frozen = system.frozen(params)
  z1 = system.before_policy(frozen, batch.images)
  features = system.features({**frozen, 'policy': params['policy']}, z1,
                             batch.images)
  policy = {'params': params['policy']}
  value = nets.apply(policy, features, method='value')  # [B, C]

  size, num_masks = value.shape
  tried = jax.random.randint(key, (c.masks, size), 0, num_masks)
  masks = Actions(*(a[tried.T.reshape(-1)] for a in state.candidates))
  logits = system.repeated(frozen, z1, batch.images, masks, c.masks)
  p = jax.nn.softmax(logits).swapaxes(0, 1)  # [S, B, K]
  success = jax.lax.stop_gradient(
      jnp.take_along_axis(p, batch.labels[None, :, None], 2)[..., 0])
  predicted = jnp.take_along_axis(value[None], tried[..., None], 2)[..., 0]
  value_loss = optax.sigmoid_binary_cross_entropy(predicted, success).mean()

  ratios = system.cost.ratio(state.candidates)  # [C]
  price, best = choose(jax.nn.sigmoid(value), ratios, system.config.mac_target)
  target = Actions(*(a[best] for a in state.candidates))
  decided = learned.action_logits(nets, params['policy'], features, target)
  imitation = sum(
      optax.sigmoid_binary_cross_entropy(a, b).sum(-1).mean()
      for a, b in zip(decided, target))

  greedy = system.decide(params['policy'], features)
  total = value_loss + imitation
  metrics = {'value_loss': value_loss, 'imitation_loss': imitation,
             'macs_ratio': system.cost.ratio(greedy).mean(),
             'target_macs_ratio': ratios[best].mean(), 'price': price}
  if nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += aux
    metrics['aux_loss'] = aux
  log_price = 0.95 * state.log_price + 0.05 * jnp.log(
      jnp.clip(price, *reinforce.PRICES))
  return total, (metrics, {'log_price': log_price})


def choose(value, ratios, target):
  """Chooses the mask with the best value minus price x MACs for each image.

  Args:
    value: success probability under each mask, [B, C].
    ratios: MACs of each mask over the dense model's, [C].
    target: mean ratio to meet, from below and as closely as prices allow.

  Returns:
    (price [], index of the chosen mask [B]).
  """
  value = jax.lax.stop_gradient(value)
  pick = lambda price: jnp.argmax(value - price * ratios, axis=-1)

  def halve(_, bounds):
    low, high = bounds
    middle = jnp.sqrt(low * high)
    spends = ratios[pick(middle)].mean() > target
    return jnp.where(spends, middle, low), jnp.where(spends, high, middle)

  bounds = (jnp.float32(1e-4), jnp.float32(1e2))
  _, price = jax.lax.fori_loop(0, 30, halve, bounds)
  return price, pick(price)


PHASE = Phase(
    loss, trains=('policy',), teacher=True, decides='policy',
    defaults=dict(OPTIMIZER, learning_rate=3e-3, weight_decay=0.0, masks=4),
    ranges=dict(masks=ranges.COUNT))
