"""The joint phase's tuning of the ViT for a policy that is not learned.

Fixed (Table 1), stochastic (figure 9), or a given mask, the best of which is
the baseline that a learned policy must beat.
"""

from adavit_jax.policies import fixed
from adavit_jax.runtime import modes
from adavit_jax.train.phases.joint import path_loss

TRAINS = ('vit',)


def loss(system, params, state, batch, key, progress):
  """Loss under a policy that is not learned; see `dense.loss`."""
  del progress
  c, num = system.config.static, system.model.num_adaptive
  if c.policy == 'table_1':
    actions = fixed.table_1(c.number, num, which=c.which)
  elif c.policy == 'stochastic':
    actions = fixed.stochastic(key, batch.labels.shape[0], num,
                               final=c.survival)
  else:
    actions = fixed.parse(c.keep, num)
  z1 = modes.fixed(system.model, params['vit'], batch.images)
  total, metrics = path_loss(
      system, c, params['vit'], z1, state.teacher, batch, actions)
  metrics['macs_ratio'] = system.plain_cost.ratio(actions).mean()
  return total, (metrics, {})
