"""One optimizer step of a phase, and the state in which a phase begins."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adavit_jax import data
from adavit_jax.train import config as config_lib
from adavit_jax.train import optimizer
from adavit_jax.train import phases
from adavit_jax.train import system as system_lib


class Batch(NamedTuple):
  """What a loss sees.

  Attributes:
    images: augmented and normalised, float32 [B, S, S, C].
    targets: class distributions, float32 [B, K]; of a regression the
      normalised labels [B, 1].
    labels: [B] int32, before mixing; of a regression float32, in its unit.
  """
  images: jax.Array
  targets: jax.Array
  labels: jax.Array


def begin_phase(system, state, phase):
  """Gives the state a fresh optimizer and average for a phase.

  Carries on from the averaged parameters where the last phase kept an average.
  """
  c = system.config[phase]
  params = system_lib.final_params(state)
  trained = _trained(params, phase)
  tx, _ = optimizer.make_optimizer(c, c.steps // phases.rounds(phase, system))
  # Copies, since a step donates the state and may not see a buffer twice.
  ema = jax.tree.map(jnp.copy, trained) if c.ema else None
  return state.replace(params=params, opt_state=tx.init(trained), ema=ema)


def abstract_state(system, phase):
  """Shapes of the state during a phase, to restore a checkpoint into."""
  def build():
    state = system_lib.init_state(system, 0)
    if phase in config_lib.TAUGHT:
      state = state.replace(teacher=state.params['vit'])
    return begin_phase(system, state, phase)
  return jax.eval_shape(build)


def make_step(system, phase, start):
  """Makes the training step of a phase.

  Args:
    system: `System`.
    phase: a name in `phases.MODULES`.
    start: global step at which the phase began.

  Returns:
    A pure function (state, images uint8 [B, H, W, C], labels [B]) ->
    (state, metrics), to be jitted with the state donated. All randomness
    comes from the state's key and step.
  """
  c, module = system.config[phase], phases.MODULES[phase]
  num_rounds = phases.rounds(phase, system)
  length = c.steps // num_rounds
  tx, schedule = optimizer.make_optimizer(c, length)
  prepare = functools.partial(
      data.augment, config_data=_augmentation(system.config, phase),
      num_classes=system.model.num_classes, target=system.target,
      mean=system.mean, std=system.std, image_size=system.model.image_size)

  def step(state, images, labels):
    augment_key, loss_key = jax.random.split(
        jax.random.fold_in(state.key, state.step))
    batch = Batch(*prepare(augment_key, images, labels), labels)
    done = state.step - start
    trained = _trained(state.params, phase)

    def loss(trained):
      return module.loss(
          system, trained, state, batch, loss_key, done / c.steps)

    grads, (metrics, updates) = jax.grad(loss, has_aux=True)(trained)
    grad_norm = optax.tree.norm(grads)
    since = done - length * jnp.minimum(done // length, num_rounds - 1)
    opt_state = state.opt_state
    if num_rounds > 1:
      opt_state = jax.tree.map(
          lambda fresh, old: jnp.where(since == 0, fresh, old),
          tx.init(trained), opt_state)
    changes, opt_state = tx.update(grads, opt_state, trained)
    if phase == 'layer_wise':
      changes = module.only(
          system.model, changes, module.stage_of(system, done))
    if phase == 'joint':
      changes['policy'] = jax.tree.map(
          lambda u: c.policy_lr_factor * u, changes['policy'])
    trained = optax.apply_updates(trained, changes)
    ema = state.ema
    if c.ema:
      ema = optimizer.ema_update(ema, trained, c.ema, step=done)
    metrics = {**metrics, 'learning_rate': schedule(since),
               'grad_norm': grad_norm}
    state = state.replace(
        step=state.step + 1, params={**state.params, **trained},
        opt_state=opt_state, ema=ema, **updates)
    return state, metrics

  return step


def _augmentation(config, phase):
  """The augmentation of a phase, as `config.data` has it.

  No images are mixed where a reward or a teacher needs one true class, or a
  policy decides about one image.
  """
  config_data = config.data.copy_and_resolve_references()
  if phase in config_lib.TAUGHT or config.exits.policy:
    config_data.mixup = config_data.cutmix = 0.
    if config_data.policy_crop_padding is not None:
      config_data.crop_padding = config_data.policy_crop_padding
  return config_data


def _trained(params, phase):
  # A model with branches has no heads of its own.
  return {group: params[group] for group in phases.MODULES[phase].TRAINS
          if group in params}
