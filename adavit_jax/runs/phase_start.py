"""Prepares the state for a phase: teacher, masks, values, price, optimizer.

The functions take a `loop.Trainer` and read its system, data and config.
"""

import contextlib

from absl import logging
import jax
import jax.numpy as jnp

from adavit_jax import progress as progress_lib
from adavit_jax.models import plan
from adavit_jax.policies import mask_search
from adavit_jax.policies import observation
from adavit_jax.runs import history
from adavit_jax.runs import value_fit
from adavit_jax.train import phases as phases_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib


def enter(trainer, state, phase, had_price=False):
  """Returns the state at the start of a phase.

  Args:
    trainer: `loop.Trainer`.
    state: `State` before the phase.
    phase: one of the config's phases.
    had_price: whether the run that this one started from set the price of MACs.

  Returns:
    `State` with the optimizer state of the phase.

  Raises:
    ValueError: as `static_masks`, before a warm start.
  """
  phases = trainer.config.phases
  rules = phases_lib.PHASES[phase]
  if rules.teacher and state.teacher is None:
    params = state_lib.final_params(state)
    copies = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    state = state.replace(params=params, ema=None,
                          teacher=copies(state_lib.model_params(params)))
  elif rules.from_scratch:
    state = state.replace(teacher=None)
  if 'policy' in rules.trains and not trainer.policy_has_learned(phase):
    state = with_stats(trainer, state)
  if phase == 'warm_start':
    masks = static_masks(trainer, state_lib.final_params(state))
    state = value_fit.fitted(trainer, state, masks)
  priced = had_price or history.sets_price(
      trainer.config, phases[:phases.index(phase)])
  if phase in ('policy', 'joint'):
    price = trainer.config[phase].price
    if not priced:
      state = state.replace(log_price=jnp.log(jnp.float32(price)))
    elif price != rules.defaults['price']:
      logging.warning('%s.price=%g is not read, since the price of MACs was '
                      'set before this phase', phase, price)
  return sharded.put(
      step_lib.begin_phase(trainer.system, state, phase, trainer.mesh),
      trainer.mesh)


def with_stats(trainer, state):
  """Returns the state with the policy's feature statistics of training images.
  """
  params = state_lib.final_params(state)
  mean, std = trainer.evaluator.feature_stats(
      params, trainer.dataset.train, 5000)
  stats = observation.Stats(*map(jnp.float32, (mean, std + 1e-2)))
  return state.replace(params={**state.params, 'policy_stats': stats})


def static_masks(trainer, params, *, forward=False):
  """Searches static masks on held-out images (`mask_search.candidates`).

  Args:
    trainer: `loop.Trainer`.
    params: groups.
    forward: return the chain that adds layers instead, see
      `mask_search.greedy_chain`.

  Returns:
    `Actions` [C, L1], [C, L2].

  Raises:
    ValueError: if no images were held out.
  """
  if not len(trainer.dataset.holdout):
    raise ValueError('the greedy search needs held-out images; set '
                     '--config.data.holdout=0.1')
  system = trainer.system
  z1, images, labels = trainer.evaluator.z1(
      params, trainer.dataset.holdout, trainer.config.num_search)
  num_tried = mask_search.num_tried(plan.num_layers(system.model))
  total = num_tried * (1 if forward else mask_search.NUM_CHAINS)
  args = (system.model, system.fold(state_lib.model_params(params)),
          system.plain_cost, z1, labels)
  with contextlib.closing(
      progress_lib.Progress(total, 'masks', 'mask search')) as progress:
    options = dict(images=images, batch_size=trainer.config.eval_batch_size,
                   mesh=trainer.mesh,
                   progress=lambda done: progress.update(done, done, {}))
    if forward:
      return mask_search.greedy_chain(*args, forward=True, **options).actions
    return mask_search.candidates(*args, **options)
