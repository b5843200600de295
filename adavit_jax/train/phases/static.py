"""Fine-tunes the model for a policy that is not learned, as the joint phase.

The policy is fixed (Table 1), stochastic (figure 9), or a given mask. The best
static mask is the baseline that a learned policy must beat. The loss is
`joint.path_loss`.
"""

import jax

from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.train import ranges
from adavit_jax.train import training_pass
from adavit_jax.train.phases import joint
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase
from adavit_jax.train.phases.phase import choice


def loss(system, params, state, batch, key, done):
  """Returns the loss under a policy that is not learned; see `Phase.loss`."""
  del done
  c = system.config.static
  action_key, key = jax.random.split(key)
  chosen = actions(
      c, plan.num_layers(system.model), len(batch.labels), action_key)
  start = training_pass.begin(system, params, batch.images, key)
  total, (metrics, updates) = joint.path_loss(
      system, c, params, start, state.teacher, batch, chosen)
  metrics['macs_ratio'] = system.plain_cost.ratio(chosen).mean()
  return total, (metrics, updates)


def at_inference(system):
  """Returns the mask at inference after the phase, `Actions` [L1], [L2].

  A stochastic policy is for training only: every layer runs after it.
  """
  c, num_layers = system.config.static, plan.num_layers(system.model)
  if c.policy == 'stochastic':
    return fixed.all_layers(num_layers)
  return actions(c, num_layers, 1, key=None)


def actions(c, num_layers, batch_size, key):
  """Returns the actions of the config's policy for a batch.

  Args:
    c: config of the phase: policy, number, which, survival, keep.
    num_layers: (L1, L2).
    batch_size: B.
    key: PRNG key; only a stochastic policy uses it.

  Returns:
    `Actions` [L1], [L2]; for a stochastic policy [B, L1], [B, L2].

  Raises:
    ValueError: if the policy does not fit the number of layers.
  """
  if c.policy == 'table_1':
    return fixed.table_1(c.number, num_layers, which=c.which)
  if c.policy == 'stochastic':
    return fixed.stochastic(key, batch_size, num_layers, final=c.survival)
  return fixed.parse(c.keep, num_layers)


def check(system):
  """Raises a ValueError for a policy that is unknown or does not fit."""
  c = system.config.static
  if c.accumulate > 1 and c.representation:
    raise ValueError(
        f'static.accumulate={c.accumulate} splits a batch, but '
        f'static.representation={c.representation} divides by a mean over the '
        f'whole batch; set the one to 1, or the other to 0')
  choice('static.policy', system.config.static.policy,
         ('table_1', 'stochastic', 'mask'))
  if c.policy == 'table_1':
    choice('static.which', c.which, ('first', 'last'))
    choice('static.number', c.number, tuple(fixed.TABLE_1))
  try:
    at_inference(system)
  except ValueError as error:
    field = dict(table_1='number', mask='keep')[c.policy]
    raise ValueError(f'static.{field}={c[field]!r}: {error}') from error


PHASE = Phase(
    loss, trains=('backbone',), mean=True, teacher=True, taught=True,
    decides='mask', check=check,
    defaults=dict(OPTIMIZER, learning_rate=5e-4, policy='table_1', number=4,
                  which='first', survival=0.5, keep='', **joint.PATH_DEFAULTS),
    ranges=dict(joint.PATH_RANGES, survival=ranges.SHARE))
