"""AdamW or Muon with warm-up, cosine decay, clipping; parameters averaged."""

import functools

import jax
import jax.numpy as jnp
import optax
from optax import contrib

OPTIMIZERS = ('adamw', 'muon')


def make_optimizer(config, steps: int, *, stacks=(), undecayed=()
                   ) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Makes the optimizer of one phase.

  Args:
    config: ConfigDict with
      optimizer: one of `OPTIMIZERS`. 'muon' orthogonalises the momentum of
        every kernel of a stack of encoders [L, in, out] (queries, keys and
        values as one matrix) and of every convolution [h, w, in, out], in a
        stack [L, h, w, in, out] (Jordan et al., 2024), scaled to the size of
        Adam's updates (Liu et al., 2025, arXiv:2502.16982). All other leaves
        get Adam with Nesterov momentum, without decay.
      learning_rate: the peak.
      warmup: share of the steps with a linear rise from 0, in [0, 1).
      end_lr_factor: the last rate as a share of the peak, in [0, 1].
      weight_decay: decoupled decay of the kernels, times the rate.
      clip_norm: the largest global norm of the gradient; 0 clips nothing.
      b1, b2: decay of Adam's two moments, in [0, 1); Muon's one is 0.95.
    steps: optimizer steps of the phase.
    stacks: names of the groups of parameters with a leading axis of encoders,
      see `plan.groups`; for 'muon'.
    undecayed: names of groups of parameters without weight decay.

  Returns:
    (tx, schedule); `schedule(count)` is the learning rate of the update that
    follows `count` updates.

  Raises:
    ValueError: a number is out of its range, or the optimizer is unknown.
  """
  _check(config, steps)
  schedule = make_schedule(config, steps)
  clip = ([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm
          else [])
  if config.optimizer == 'muon':
    update = contrib.muon(
        schedule, beta=0.95, weight_decay=config.weight_decay,
        consistent_rms=0.2, adam_b1=config.b1, adam_b2=config.b2,
        muon_weight_dimension_numbers=functools.partial(
            _matrices, stacks))
  else:
    update = optax.adamw(schedule, b1=config.b1, b2=config.b2,
                         weight_decay=config.weight_decay,
                         mask=functools.partial(
                             decay_mask, undecayed=undecayed))
  return optax.chain(*clip, update), schedule


def make_schedule(config, steps: int) -> optax.Schedule:
  """Rises linearly from 0 to the peak, then falls along a half cosine."""
  # At least one step is left to the cosine, whatever the rounding.
  warmup_steps = min(round(config.warmup * steps), steps - 1)
  cosine = optax.cosine_decay_schedule(
      config.learning_rate, steps - warmup_steps, alpha=config.end_lr_factor)
  if not warmup_steps:
    return cosine
  rise = optax.linear_schedule(0., config.learning_rate, warmup_steps)
  return optax.join_schedules([rise, cosine], [warmup_steps])


def decay_mask(params, undecayed=()):
  """Marks the leaves that weight decay applies to: those named 'kernel'.

  The rank cannot tell: the scales and biases of stacked encoders are
  `[L, D]`, and position embeddings have three axes.

  Args:
    params: pytree of parameters.
    undecayed: names of its groups that have no decay.

  Returns:
    The same tree of bools.
  """
  name = lambda path: jax.tree_util.keystr(path, simple=True)

  def decays(path, _):
    return name(path[-1:]) == 'kernel' and name(path[:1]) not in undecayed

  return jax.tree_util.tree_map_with_path(decays, params)


def _matrices(stacks, params):
  """Axes of the matrices that Muon trains; None for leaves that it does not.

  Kernels [in, out] of one encoder and convolutions [h, w, in, out] are
  matrices; a stack of encoders has a leading axis more.
  """
  def axes(path, kernel, leaf):
    stacked = len(path) > 1 and path[1].key in stacks
    if not kernel or leaf.ndim < 3:
      return None
    inner = tuple(range(stacked, leaf.ndim - 1))
    return contrib.MuonDimensionNumbers(inner, leaf.ndim - 1)
  return jax.tree_util.tree_map_with_path(axes, decay_mask(params), params)


def ema_update(ema, params, decay: float, *, step=None):
  """Moves an exponential moving average towards new parameters.

  Args:
    ema: the average so far, a pytree of arrays.
    params: the new parameters, the same tree.
    decay: share of the old average that stays, a Python number in [0, 1);
      0 means no averaging and gives `params` back.
    step: updates so far, an int or a scalar array. With it the decay is
      min(decay, (1 + step) / (10 + step)), so that the random start is soon
      forgotten; None uses `decay` as it is.

  Returns:
    The new average.

  Raises:
    ValueError: decay is out of [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f'ema decay={decay} must be in [0, 1); 0 switches it off')
  if decay == 0:
    return params
  if step is not None:
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def _check(config, steps):
  if steps < 1:
    raise ValueError(f'steps={steps} must be at least 1')
  if config.optimizer not in OPTIMIZERS:
    raise ValueError(f'optimizer={config.optimizer!r}; known: {OPTIMIZERS}')
  rules = (
      ('learning_rate', lambda x: x > 0, 'must be above 0'),
      ('warmup', lambda x: 0 <= x < 1,
       'is a share of the steps and must be in [0, 1)'),
      ('end_lr_factor', lambda x: 0 <= x <= 1,
       'is a share of the peak and must be in [0, 1]'),
      ('weight_decay', lambda x: x >= 0, 'must be 0 or more'),
      ('clip_norm', lambda x: x >= 0, 'must be 0 (no clipping) or more'),
      ('b1', lambda x: 0 <= x < 1, 'must be in [0, 1)'),
      ('b2', lambda x: 0 <= x < 1, 'must be in [0, 1)'),
  )
  for name, is_good, rule in rules:
    if not is_good(config[name]):
      raise ValueError(f'{name}={config[name]} {rule}')
