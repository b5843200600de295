"""Ranges of the numbers of a config that nothing else checks."""

import math
import operator

from adavit_jax.policies import reinforce

_POSITIVE = lambda x: x > 0, 'must be positive'
_COUNT = lambda x: x >= 1, 'must be at least 1'
_FINITE = math.isfinite, 'must be a finite number'
_WEIGHT = lambda x: x >= 0, 'must not be negative'
_SHARE = lambda x: 0 <= x <= 1, 'must be in [0, 1]: it is a share'
_BELOW_1 = lambda x: 0 <= x < 1, 'must be in [0, 1)'
_LOW, _HIGH = reinforce.PRICES
_PRICE = (lambda x: _LOW <= x <= _HIGH,
          f'must be in [{_LOW}, {_HIGH}], where it is kept')

_RL = dict(alpha=_WEIGHT, samples=_COUNT, entropy=_WEIGHT, price=_PRICE,
           price_rate=_WEIGHT, aux=_WEIGHT,
           bound=(lambda x: 0.5 < x <= 1, 'must be in (0.5, 1]'))
_PATH = dict(distill=_SHARE, temperature=_POSITIVE, representation=_WEIGHT)

_RANGES = {
    '': dict(seed=_WEIGHT, log_every=_COUNT, eval_every=_COUNT,
             checkpoint_every=_COUNT, eval_batch_size=_COUNT,
             num_search=_COUNT,
             mac_target=(lambda x: 0 < x <= 1, 'must be in (0, 1]: it is a '
                         "share of the dense model's MACs")),
    'model': dict(unroll=_COUNT),
    'nets': dict(hidden=_WEIGHT, bias=_FINITE,
                 threshold=(lambda x: 0 < x < 1, 'must be in (0, 1)')),
    'dense': dict(drop_path=_BELOW_1, nested=_WEIGHT, random_masks=_SHARE,
                  mask_weight=_WEIGHT),
    'warm_start': dict(masks=_COUNT),
    'policy': dict(_RL, curriculum=_SHARE),
    'joint': dict(_RL, **_PATH, policy_lr_factor=_WEIGHT, sampled=_SHARE),
    'static': dict(_PATH, survival=_SHARE),
    'exits': dict(slack=_WEIGHT),
}
# Of a phase that is to be run; its optimizer checks the rest.
_OF_PHASES = dict(steps=_POSITIVE, batch_size=_POSITIVE,
                  learning_rate=_POSITIVE, ema=_BELOW_1)


def check(config):
  """Raises a ValueError that names the number outside its range."""
  for phase in config.phases:
    _check(config, phase, _OF_PHASES)
  for part, ranges in _RANGES.items():
    _check(config, part, ranges)


def _check(config, part, ranges):
  for name, (is_good, rule) in ranges.items():
    field = f'{part}.{name}' if part else name
    value = operator.attrgetter(field)(config)
    if not is_good(value):  # NaN is in no range.
      raise ValueError(f'{field}={value} {rule}')
