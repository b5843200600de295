"""Phase 2: supervised training of both policy networks with a frozen model.

The value policy, fitted before this phase (`value`), predicts the probability
of the true class under each of a few dozen masks of a greedy search
(`mask_search.candidates`). For each image, the networks imitate the mask with
the largest value minus price x MACs. The price is solved for in every batch so
that the mean MACs meet the target.
"""

import jax.numpy as jnp
import optax

from adavit_jax.policies import learned
from adavit_jax.policies import value as value_lib
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train.phases import budget
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the loss of the warm start; see `Phase.loss`."""
  del key
  c, nets = system.config.warm_start, system.nets
  frozen = system.frozen(params)
  z1 = system.before_policy(frozen, batch.images)
  features = system.features({**frozen, 'policy': params['policy']}, z1,
                             batch.images)
  value = frozen['value']
  predicted = value_lib.predict(value, features.fixed)
  ratios = system.cost.ratio(value.masks)  # [C]
  price = value_lib.solve_price(predicted, ratios, system.config.mac_target)
  target = system.by_value(value, features, price)
  decided = learned.action_logits(nets, params['policy'], features, target)
  imitation = sum(
      optax.sigmoid_binary_cross_entropy(a, b).sum(-1).mean()
      for a, b in zip(decided, target))

  greedy = system.decide(params['policy'], features)
  total = imitation
  metrics = {'imitation_loss': imitation,
             'macs_ratio': system.cost.ratio(greedy).mean(),
             'target_macs_ratio': system.cost.ratio(target).mean(),
             'price': price}
  if nets.aux:
    aux = losses.cross_entropy(features.aux_logits, batch.targets)
    total += aux
    metrics['aux_loss'] = aux
  shift = budget.share(c.shift_rate, done / c.steps) * budget.missing_shift(
      system, params['policy'], features)
  log_price = 0.95 * state.log_price + 0.05 * jnp.log(price)
  return total, (metrics, {'log_price': log_price, 'shift': shift})


PHASE = Phase(
    loss, trains=('policy',), teacher=True, decides='policy',
    defaults=dict(OPTIMIZER, learning_rate=3e-3, weight_decay=0.0,
                  shift_rate=0.2),
    ranges=dict(shift_rate=ranges.SHARE))
