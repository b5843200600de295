"""The training state and its groups of parameters."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from adavit_jax import models
from adavit_jax.policies import learned
from adavit_jax.runtime import masked


@struct.dataclass
class State:
  """Everything that changes during training; a checkpoint holds exactly this.

  Attributes:
    step: steps taken over all phases, [] int32.
    params: groups of parameters: those of `models.init_params` and of
      `learned.init_params`.
    opt_state: optimizer state of the current phase.
    ema: averaged parameters of the groups that the phase trains, with the batch
      statistics if it trains the backbone; None if averaging is off.
    log_price: log μ of the MAC controller, [].
    teacher: the model's groups at the end of the dense phase, or None.
    key: PRNG key of the run.
  """
  step: jax.Array
  params: dict[str, Any]
  opt_state: Any
  ema: Any
  log_price: jax.Array
  teacher: Any
  key: jax.Array


def key_for(seed, purpose):
  """Returns the PRNG key of a run for one purpose, given by its name."""
  return masked.named_key(jax.random.key(seed), purpose)


def init_state(system, seed):
  """Returns the state before the first phase, without optimizer state."""
  model, nets = system.model, system.nets
  params = models.init_params(model, key_for(seed, 'model'))
  if nets is not None:
    params |= learned.init_params(nets, model, key_for(seed, 'policy'))
  return State(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=None, ema=None,
      log_price=jnp.zeros((), jnp.float32), teacher=None,
      key=key_for(seed, 'steps'))


def restart(state, seed):
  """Returns the first state of a run that starts from another's parameters."""
  # Runs in a chain often share the seed. A key made of the other run's keeps
  # the steps of all of them independent.
  return state.replace(
      params=final_params(state), ema=None, step=jnp.zeros_like(state.step),
      key=masked.named_key(jax.random.fold_in(state.key, seed),
                           'steps from init.workdir'))


def final_params(state):
  """Returns the parameters to use: the averaged ones if there are any."""
  return {**state.params, **(state.ema or {})}


def model_params(params):
  """Returns the groups of a dense model: without added exits and policy."""
  return {group: params[group] for group in ('backbone', 'batch_stats')
          if group in params}
