"""What changes during training, and the groups of parameters in it."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from adavit_jax import models
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.runtime import masked


@struct.dataclass
class State:
  """All that changes during training; a checkpoint holds exactly this.

  Attributes:
    step: steps taken over all phases, [] int32.
    params: groups of parameters: of `models.init_params`, 'policy', and
      'policy_stats', the feature statistics of the policy.
    opt_state: of the current phase.
    ema: averaged parameters of the groups the phase trains, and of the batch
      statistics with the backbone; None if off.
    log_price: log μ of the MAC controller, [].
    candidates: `Actions` [C, L1], [C, L2], static masks found greedily; the
      first L1 + L2 + 1 are the chain of all images (`search.candidates`).
      None where there is no policy.
    teacher: the model's groups at the end of the dense phase, or None.
    key: PRNG key of the run.
  """
  step: jax.Array
  params: dict[str, Any]
  opt_state: Any
  ema: Any
  log_price: jax.Array
  candidates: Actions
  teacher: Any
  key: jax.Array


def key_for(seed, purpose):
  """The PRNG key of a run for one purpose: each has a name, and its own key.
  """
  return masked.named_key(jax.random.key(seed), purpose)


def init_state(system, seed):
  """The state before the first phase, with no optimizer yet."""
  model, nets = system.model, system.nets
  params = models.init_params(model, key_for(seed, 'model'))
  candidates = None
  if nets is not None:
    params['policy'], params['policy_stats'] = learned.init_params(
        nets, model, key_for(seed, 'policy'))
    candidates = Actions(*(jnp.ones((nets.num_candidates, num))
                           for num in nets.num_layers))
  return State(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=None, ema=None,
      log_price=jnp.zeros((), jnp.float32), candidates=candidates,
      teacher=None, key=key_for(seed, 'steps'))


def restart(state, seed):
  """The state of a new run that begins from the parameters of another."""
  # Often of the same seed: its steps draw anew.
  return state.replace(
      params=final_params(state), ema=None, step=jnp.zeros_like(state.step),
      key=key_for(seed, 'steps from init.workdir'))


def final_params(state):
  """The parameters to go on with: the averaged ones where there are any."""
  return {**state.params, **(state.ema or {})}


def model_params(params):
  """The groups of a dense model: without added exits and policy."""
  return {group: params[group] for group in ('backbone', 'batch_stats')
          if group in params}
