"""AdamW or Muon with warm-up, cosine decay and clipping; weight averaging."""

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
      optimizer: one of `OPTIMIZERS`. 'muon' orthogonalizes the momentum of
        every kernel of a stack of encoders [L, in, out] (queries, keys and
        values as one matrix) and of every convolution [h, w, in, out], in a
        stack [L, h, w, in, out] (Jordan et al., 2024), scaled to the size of
        Adam's updates (Liu et al., 2025, arXiv:2502.16982). All other leaves,
        and the groups `undecayed`, use Adam with Nesterov momentum, without
        decay.
      learning_rate: peak learning rate.
      warmup: fraction of the steps with linear warm-up from 0, in [0, 1).
      end_lr_factor: final learning rate over the peak, in [0, 1].
      weight_decay: decoupled weight decay of the kernels, scaled by the
        learning rate.
      clip_norm: maximum global norm of the gradient; 0 disables clipping.
      b1, b2: decay rates of Adam's two moments, in [0, 1); Muon's is 0.95.
    steps: optimizer steps of the phase.
    stacks: names of the parameter groups with a leading axis of encoders, see
      `plan.groups`; for 'muon'.
    undecayed: names of the parameter groups without weight decay.

  Returns:
    (tx, schedule); `schedule(count)` is the learning rate of the update that
    follows `count` updates.
  """
  schedule = make_schedule(config, steps)
  clip = ([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm
          else [])
  if config.optimizer == 'muon':
    update = contrib.muon(
        schedule, beta=0.95, weight_decay=config.weight_decay,
        consistent_rms=0.2, adam_b1=config.b1, adam_b2=config.b2,
        muon_weight_dimension_numbers=functools.partial(
            _matrices, stacks, undecayed))
  else:
    update = optax.adamw(schedule, b1=config.b1, b2=config.b2,
                         weight_decay=config.weight_decay,
                         mask=functools.partial(
                             decay_mask, undecayed=undecayed))
  return optax.chain(*clip, update), schedule


def make_schedule(config, steps: int) -> optax.Schedule:
  """Returns a schedule of linear warm-up from 0, then cosine decay."""
  # Rounding must leave at least one step of cosine decay.
  warmup_steps = min(round(config.warmup * steps), steps - 1)
  cosine = optax.cosine_decay_schedule(
      config.learning_rate, steps - warmup_steps, alpha=config.end_lr_factor)
  if not warmup_steps:
    return cosine
  rise = optax.linear_schedule(0., config.learning_rate, warmup_steps)
  return optax.join_schedules([rise, cosine], [warmup_steps])


def decay_mask(params, undecayed=()):
  """Marks the leaves that weight decay applies to: those named 'kernel'.

  The rank does not tell kernels apart: scales and biases of stacked encoders
  are `[L, D]`, and position embeddings have three axes.

  Args:
    params: pytree of parameters.
    undecayed: names of the groups without decay.

  Returns:
    The same tree of bools.
  """
  name = lambda path: jax.tree_util.keystr(path, simple=True)

  def decays(path, _):
    return name(path[-1:]) == 'kernel' and name(path[:1]) not in undecayed

  return jax.tree_util.tree_map_with_path(decays, params)


def _matrices(stacks, undecayed, params):
  """Returns the matrix axes of leaves that Muon trains, None for other leaves.

  Kernels [in, out] of one encoder and convolutions [h, w, in, out] are
  matrices; a stack of encoders adds a leading axis.
  """
  def axes(path, kernel, leaf):
    stacked = len(path) > 1 and path[1].key in stacks
    if not kernel or leaf.ndim < 3:
      return None
    inner = tuple(range(stacked, leaf.ndim - 1))
    return contrib.MuonDimensionNumbers(inner, leaf.ndim - 1)
  return jax.tree_util.tree_map_with_path(
      axes, decay_mask(params, undecayed), params)


def ema_update(ema, params, decay: float, *, step=None):
  """Updates an exponential moving average of parameters.

  Args:
    ema: the average so far, a pytree of arrays.
    params: the new parameters, the same tree.
    decay: weight of the old average, a Python number in [0, 1); 0 disables
      averaging and returns `params`.
    step: number of updates so far, an int or a scalar array. If given, the
      decay is min(decay, (1 + step) / (10 + step)), so that the initial values
      lose their weight quickly; None uses `decay` unchanged.

  Returns:
    The new average.

  Raises:
    ValueError: if decay is outside [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f'ema decay={decay} must be in [0, 1); 0 disables it')
  if decay == 0:
    return params
  if step is not None:
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
