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
  c = system.config.static
  chosen = actions(
      c, system.model.num_adaptive, batch.labels.shape[0], key)
  z1 = modes.fixed(system.model, params['vit'], batch.images)
  total, metrics = path_loss(
      system, c, params['vit'], z1, state.teacher, batch, chosen)
  metrics['macs_ratio'] = system.plain_cost.ratio(chosen).mean()
  return total, (metrics, {})


def at_inference(system, phase):
  """What a run does at inference that ends with a phase.

  Args:
    system: `System` of the run.
    phase: its last one.

  Returns:
    `Actions` [L] for every image, or None: a learned policy decides. After a
    stochastic policy, which is for training, every layer runs.
  """
  c, num = system.config.static, system.model.num_adaptive
  if phase not in ('dense', 'static'):
    return None
  if phase == 'dense' or c.policy == 'stochastic':
    return fixed.all_layers(num)
  return actions(c, num, 1, key=None)


def actions(c, num_layers, batch_size, key):
  """What the config's policy decides for a batch.

  Args:
    c: config of the phase: policy, number, which, survival, keep.
    num_layers: L.
    batch_size: B.
    key: PRNG key; only a stochastic policy uses it.

  Returns:
    `Actions` [L], or [B, L] of a stochastic policy.

  Raises:
    ValueError: if the policy does not fit L encoders.
  """
  if c.policy == 'table_1':
    return fixed.table_1(c.number, num_layers, which=c.which)
  if c.policy == 'stochastic':
    return fixed.stochastic(key, batch_size, num_layers, final=c.survival)
  return fixed.parse(c.keep, num_layers)
