"""Finishes the state at the end of a phase: value policy, mean MACs."""

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp

from adavit_jax.policies import learned
from adavit_jax.runs import history
from adavit_jax.runs import value_fit
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train.phases import budget

_LIMIT = 8.0  # the largest shift of the logits


def leave(trainer, state, phase):
  """Returns the state at the end of a phase.

  The value policy is fitted again to a model that the phase changed, and the
  mean MACs of the policy networks are set to the target.

  Args:
    trainer: `loop.Trainer`.
    state: `State` after the last step of the phase.
    phase: one of the config's phases.

  Returns:
    `State`, laid out as `sharded.put` does.
  """
  state = value_fit.refitted(trainer, state, phase)
  return _on_target(trainer, state, phase)


def _on_target(trainer, state, phase):
  """Shifts all logits of the policy networks to meet the MAC target.

  A batch has few images and a short phase few steps, so that training itself
  only comes near the target. As for the price of a value policy, the images are
  held-out ones, or training images if there are none.
  """
  config, system = trainer.config, trainer.system
  if ('policy' not in phases.PHASES[phase].trains
      or not history.sets_price(config, [phase])
      or system.nets.decide != 'networks'):
    return state
  split = trainer.dataset.holdout
  if not len(split):
    split = trainer.dataset.train
  params = state_lib.final_params(state)
  features = trainer.evaluator.features(params, split, config.num_search)

  @jax.jit
  def solve(policy, features):
    shift = budget.missing_shift(system, policy, features, _LIMIT)
    actions = system.decide(learned.shifted(policy, shift), features)
    return shift, system.cost.ratio(actions).mean()

  # Hosts may round the shift differently, but must choose the same layers.
  shift, ratio = multihost_utils.broadcast_one_to_all(
      solve(params['policy'], features))
  logging.info(
      '%s: logits shifted by %.3f, MACs %.4f of the dense model on %d images '
      '(mac_target %.4g)', phase, shift, ratio, len(features.inputs),
      config.mac_target)
  _warn_off_target(phase, float(ratio), config.mac_target)
  shift = jnp.float32(shift)
  moved = lambda groups: groups and {
      **groups, 'policy': learned.shifted(groups['policy'], shift)}
  return sharded.put(
      state.replace(params=moved(state.params), ema=moved(state.ema)),
      trainer.mesh)


def _warn_off_target(phase, macs_ratio, target):
  """Warns if a phase ends a tenth or more off the target of the MACs."""
  if abs(macs_ratio / target - 1) >= 0.1:
    logging.warning(
        '%s ends at %.3f of the MACs, but mac_target is %.3f; try more steps, '
        'or another mac_target', phase, macs_ratio, target)
