"""Valid ranges of the numbers in a config that no other module checks."""

import math
import operator

from adavit_jax.policies import value
from adavit_jax.train import optimizer

POSITIVE = lambda x: 0 < x < math.inf, 'must be positive and finite'
# Steps and sizes are counted in int32.
COUNT = lambda x: 1 <= x < 2**31, 'must be in [1, 2**31)'
NATURAL = (lambda x: type(x) is int and 0 <= x < 2**31,
           'must be an integer in [0, 2**31)')
FINITE = math.isfinite, 'must be a finite number'
WEIGHT = lambda x: 0 <= x < math.inf, 'must be finite and not negative'
SHARE = lambda x: 0 <= x <= 1, 'is a fraction and must be in [0, 1]'
BELOW_1 = lambda x: 0 <= x < 1, 'must be in [0, 1)'
# Of a larger one, jax.random.key would use the last 32 bits alone.
SEED = lambda x: 0 <= x < 2**32, 'must be in [0, 2**32)'
_LOW, _HIGH = value.PRICES
PRICE = (lambda x: _LOW <= x <= _HIGH,
         f'must be in [{_LOW}, {_HIGH}], where training clips it')

_RANGES = {
    '': dict(seed=SEED, steps_per_call=COUNT, log_every=COUNT, eval_every=COUNT,
             checkpoint_every=COUNT, num_search=COUNT,
             num_value=COUNT,
             # Smaller sets are padded to it.
             eval_batch_size=(lambda x: 1 <= x <= 2**16,
                              'must be in [1, 2**16]'),
             mac_target=(lambda x: 0 < x <= 1, "is a fraction of the dense "
                         "model's MACs and must be in (0, 1]")),
    'data': dict(seed=(lambda x: x is None or SEED[0](x), SEED[1])),
    'model': dict(unroll=COUNT),
    'nets': dict(hidden=WEIGHT, conv=WEIGHT, bias=FINITE,
                 threshold=(lambda x: 0 < x < 1, 'must be in (0, 1)')),
}
# For each phase that runs.
_PHASE_RANGES = dict(
    steps=COUNT, batch_size=COUNT, accumulate=COUNT, ema=BELOW_1,
    optimizer=(lambda x: x in optimizer.OPTIMIZERS,
               f'must be one of {optimizer.OPTIMIZERS}'),
    learning_rate=POSITIVE,
    warmup=(BELOW_1[0], 'is a fraction of the steps and must be in [0, 1)'),
    end_lr_factor=SHARE, weight_decay=WEIGHT,
    clip_norm=(lambda x: x >= 0, 'must be 0 (no clipping) or more'),
    b1=BELOW_1, b2=BELOW_1)


def check(config, phases):
  """Raises a ValueError that names the field whose value is out of range.

  Args:
    config: see `train.config.default_config`.
    phases: {name: `Phase`}.
  """
  for name in config.phases:
    _check(config, name, _PHASE_RANGES)
  parts = {**_RANGES, **{name: p.ranges for name, p in phases.items()}}
  for part, ranges in parts.items():
    _check(config, part, ranges)


def _check(config, part, ranges):
  for name, (is_good, rule) in ranges.items():
    field = f'{part}.{name}' if part else name
    value = operator.attrgetter(field)(config)
    if not is_good(value):  # False for NaN.
      raise ValueError(f'{field}={value} {rule}')
