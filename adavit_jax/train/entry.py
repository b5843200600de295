"""What a phase begins with: teacher, static masks, price, optimizer.

Functions of a `loop.Trainer`, of which they read system, data and config.
"""

import contextlib

import jax
import jax.numpy as jnp

from adavit_jax.policies import inputs
from adavit_jax.policies import search
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import restore
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
from adavit_jax.train import writer


def enter(trainer, state, phase, had_price=False):
  """The state with which a phase begins.

  Args:
    trainer: `loop.Trainer`.
    state: `State` at the end of what came before.
    phase: one of the config's.
    had_price: whether another run, which this run continues, has set the price
      of MACs.

  Returns:
    `State` with the optimizer of the phase.

  Raises:
    ValueError: as `static_masks`, before a warm start.
  """
  phases = trainer.config.phases
  if phase in config_lib.TAUGHT and state.teacher is None:
    state = state.replace(params=system_lib.final_params(state), ema=None)
    state = with_stats(trainer, state.replace(
        teacher=jax.tree.map(jnp.copy, state.params['vit'])))
  elif phase == 'dense':
    state = state.replace(teacher=None)
  if phase == 'warm_start':
    state = state.replace(
        candidates=static_masks(trainer, system_lib.final_params(state)['vit']))
  priced = had_price or restore.sets_price(
      trainer.config, phases[:phases.index(phase)])
  if phase in ('policy', 'joint') and not priced:
    state = state.replace(log_price=jnp.log(
        jnp.float32(trainer.config[phase].price)))
  return mesh_lib.replicate(
      step_lib.begin_phase(trainer.system, state, phase), trainer.mesh)


def with_stats(trainer, state):
  """The state with the feature statistics of its ViT on training images."""
  features = jnp.asarray(trainer.evaluator.token_features(
      state.params['vit'], trainer.dataset.train, 5000))
  return state.replace(
      stats=inputs.Stats(features.mean(0), features.std(0) + 1e-2))


def static_masks(trainer, vit, *, forward=False):
  """Static masks found greedily on held-out images (`search.candidates`).

  Args:
    trainer: `loop.Trainer`.
    vit: parameters of the ViT.
    forward: the chain that adds layers instead (see `search.greedy_chain`).

  Returns:
    `Actions` [C, L].

  Raises:
    ValueError: if no images were held out.
  """
  if not len(trainer.dataset.holdout):
    raise ValueError('the greedy search needs held-out images; set '
                     '--config.data.holdout=0.1')
  z1, labels = trainer.evaluator.z1(
      vit, trainer.dataset.holdout, trainer.config.num_search)
  num_tried = search.num_tried(trainer.system.model.num_adaptive)
  total = num_tried * (1 if forward else search.NUM_CHAINS)
  given = (trainer.system.model, vit, trainer.system.plain_cost,
           *mesh_lib.replicate((z1, labels), trainer.mesh))
  # Every device runs all images: it gets as many at once as in evaluation.
  size = trainer.config.eval_batch_size // trainer.mesh.size
  with contextlib.closing(
      writer.Progress(total, 'masks', 'mask search')) as progress:
    how = dict(batch_size=size,
               progress=lambda done: progress.update(done, done, {}))
    if forward:
      return search.greedy_chain(*given, forward=True, **how).actions
    return search.candidates(*given, **how)
