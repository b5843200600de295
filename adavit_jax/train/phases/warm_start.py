"""Phase 2: a supervised start for both policy networks, the ViT frozen.

A value head learns how likely the ViT is right under each of a few dozen masks
found greedily (`search.candidates`); the networks imitate, per image, the mask
with the best value minus price. The price is found anew in every batch so that
the mean MACs meet the target.
"""

import jax
import jax.numpy as jnp
import optax

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import reinforce
from adavit_jax.runtime import modes
from adavit_jax.train import losses

TRAINS = ('policy',)


def loss(system, params, state, batch, key, progress):
  """Loss of the warm start; arguments and result as in `dense.loss`."""
  del progress
  c, nets = system.config.warm_start, system.nets
  policy, vit = params['policy'], state.params['vit']
  z1 = jax.lax.stop_gradient(modes.fixed(system.model, vit, batch.images))
  features = system.features({'vit': vit, 'policy': policy}, z1, state.stats)
  value = nets.apply({'params': policy}, features, method='value')  # [B, C]

  size, num_masks = value.shape
  tried = jax.random.randint(key, (c.masks, size), 0, num_masks)
  # Images before masks: the rows stay on the chips that hold the images.
  rows = jnp.repeat(z1, c.masks, axis=0)
  masks = Actions(*(a[tried.T.reshape(-1)] for a in state.candidates))
  logits = system.classify(vit, rows, masks).total
  p = jax.nn.softmax(logits).reshape(size, c.masks, -1).swapaxes(0, 1)
  success = jax.lax.stop_gradient(
      jnp.take_along_axis(p, batch.labels[None, :, None], 2)[..., 0])
  predicted = jnp.take_along_axis(value[None], tried[..., None], 2)[..., 0]
  value_loss = optax.sigmoid_binary_cross_entropy(predicted, success).mean()

  ratios = system.cost.ratio(state.candidates)  # [C]
  price, best = choose(jax.nn.sigmoid(value), ratios, system.config.mac_target)
  target = Actions(*(a[best] for a in state.candidates))
  decided = learned.action_logits(nets, policy, features, target)
  imitation = optax.sigmoid_binary_cross_entropy(decided.keep, target.keep)
  imitation = imitation.sum(-1).mean()

  greedy = learned.greedy(nets, policy, features)
  total = value_loss + imitation
  metrics = {'value_loss': value_loss, 'imitation_loss': imitation,
             'macs_ratio': system.cost.ratio(greedy).mean(),
             'target_macs_ratio': ratios[best].mean(), 'price': price}
  if system.nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += aux
    metrics['aux_loss'] = aux
  log_price = 0.95 * state.log_price + 0.05 * jnp.log(
      jnp.clip(price, *reinforce.PRICES))
  return total, (metrics, {'log_price': log_price})


def choose(value, ratios, target):
  """Per image the mask of best value minus price x MACs, at a mean budget.

  Args:
    value: success probability under each mask, [B, C].
    ratios: MACs of each mask as a share of the dense model's, [C].
    target: mean share to be met (from below, as closely as prices allow).

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
