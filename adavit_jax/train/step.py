"""The optimizer step of a phase, and the state at its start."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adavit_jax import data
from adavit_jax.models import plan
from adavit_jax.policies import learned
from adavit_jax.train import accumulate
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import optimizer
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib


class Batch(NamedTuple):
  """Inputs of a loss.

  Attributes:
    images: augmented and normalized, float32 [B, S, S, C].
    targets: class distributions, float32 [B, K]; for regression the normalized
      labels [B, 1].
    labels: [B] int32, before mixing; for regression float32, in the target's
      unit.
    taught: logits [B, K] of another model, of the same images, to learn from;
      None without such a teacher.
    read: what `Phase.reads` returns of the images, if the phase has it. With
      `views`, the images are None.
  """
  images: jax.Array | None
  targets: jax.Array
  labels: jax.Array
  taught: jax.Array | None = None
  read: Any = None


def begin_phase(system, state, phase, mesh=None):
  """Returns the state with a new optimizer state and average for a phase.

  If the previous phase kept an average, its averaged parameters are used.

  Args:
    system: `System`.
    state: `State`.
    phase: a name in `phases.PHASES`.
    mesh: devices over which the new arrays are sharded; None leaves that to
      JAX.
  """
  c, rules = system.config[phase], phases.PHASES[phase]
  params = state_lib.final_params(state)
  tx, _ = _optimizer(system, phase, c.steps // rules.rounds(system))

  def begin(params):
    # Copies, since a step donates the state, which must not hold a buffer
    # twice.
    ema = jax.tree.map(jnp.copy, _averaged(params, phase)) if c.ema else None
    return tx.init(_trained(params, phase)), ema

  placed = None if mesh is None else sharded.shardings(
      jax.eval_shape(begin, params), mesh)
  # One program, where leaf by leaf there are dozens.
  opt_state, ema = jax.jit(begin, out_shardings=placed)(params)
  return state.replace(params=params, opt_state=opt_state, ema=ema)


def abstract_state(system, phase, *, teacher=None):
  """Returns the shapes of the state during a phase, to restore a checkpoint.

  Args:
    system: `System`.
    phase: a name in `phases.PHASES`.
    teacher: whether the state has a teacher; phases that do not use it keep it
      for later phases. None for whether the phase uses it.
  """
  if teacher is None:
    teacher = phases.PHASES[phase].teacher
  def build():
    state = state_lib.init_state(system, 0)
    if teacher:
      state = state.replace(teacher=state_lib.model_params(state.params))
    return begin_phase(system, state, phase)
  return jax.eval_shape(build)


def make_step(system, phase, start, teacher=None, cropped=False):
  """Makes the training step of a phase.

  Args:
    system: `System`.
    phase: a name in `phases.PHASES`.
    start: global step at which the phase began.
    teacher: `distillation.Teacher`, another model to learn from, or None.
    cropped: whether images are random crops already, see
      `data.crop_on_reading`.

  Returns:
    A pure function (state, images uint8 [B, H, W, C], labels [B]) ->
    (state, metrics), to be jitted with the state donated. With a teacher, its
    groups, folded, are a fourth argument. With `views`, images is a `Batch`
    from `make_batch`. All randomness comes from the state's key and step.
  """
  c, rules = system.config[phase], phases.PHASES[phase]
  num_rounds = rules.rounds(system)
  length = c.steps // num_rounds
  tx, schedule = _optimizer(system, phase, length)
  augment, reads = _augment(system, phase, cropped), rules.reads
  views = num_views(system.config, phase)

  def step(state, images, labels, taught_by=None):
    augment_key, loss_key = keys(state.key, state.step)
    batch = images if views else augment(augment_key, images, labels)
    if teacher is not None:
      taught_by = sharded.whole(taught_by)
    done = state.step - start
    trained = _trained(state.params, phase)

    read = state.replace(teacher=sharded.whole(state.teacher))

    def loss(trained, batch, key):
      if reads is not None and not views:
        batch = batch._replace(read=reads(system, state.params, batch.images))
      taught = {}
      if teacher is not None:
        batch = batch._replace(taught=teacher.logits(
            taught_by, batch.images, system.mean, system.std))
        taught['teacher_accuracy'] = (
            batch.taught.argmax(-1) == batch.labels).mean()
      params = sharded.whole({**state.params, **trained})
      total, (metrics, updates) = rules.loss(
          system, params, read, batch, key, done)
      return total, ({**metrics, **taught}, updates)

    grads, (metrics, updates) = accumulate.mean(
        jax.grad(loss, has_aux=True), trained, batch, loss_key, c.accumulate)
    grad_norm = optax.tree.norm(grads)
    in_round = done - length * jnp.minimum(done // length, num_rounds - 1)
    opt_state = state.opt_state
    if num_rounds > 1:
      opt_state = _fresh_at(in_round == 0, tx, trained, opt_state)
    changes, opt_state = tx.update(grads, opt_state, trained)
    changes = rules.adjust(system, changes, done)
    params = {**state.params, **optax.apply_updates(trained, changes),
              **jax.lax.stop_gradient(updates.pop('params', {}))}
    if 'shift' in updates:
      params['policy'] = learned.shifted(
          params['policy'], updates.pop('shift'))
    ema = state.ema
    if c.ema:
      ema = optimizer.ema_update(
          ema, _averaged(params, phase), c.ema, step=done)
    metrics = {**metrics, 'learning_rate': schedule(in_round),
               'grad_norm': grad_norm}
    state = state.replace(step=state.step + 1, params=params,
                          opt_state=opt_state, ema=ema, **updates)
    return state, metrics

  return step


def keys(key, step):
  """Returns the keys of the augmentation and of the loss of a step."""
  return jax.random.split(jax.random.fold_in(key, step))


def make_batch(system, phase, cropped=False):
  """Makes what augments and reads images for a phase with `reads`.

  Args:
    system, phase, cropped: as for `make_step`.

  Returns:
    A pure function (params, key, images uint8 [B, H, W, C], labels [B]) ->
    `Batch`.
  """
  augment = _augment(system, phase, cropped)
  reads = phases.PHASES[phase].reads

  def run(params, key, images, labels):
    batch = augment(key, images, labels)
    return batch._replace(read=reads(system, params, batch.images))

  return run


def _augment(system, phase, cropped):
  """Returns a function (key, images, labels) -> `Batch`, see `make_batch`."""
  augment = functools.partial(
      data.augment, config_data=augmentation(system.config, phase),
      num_classes=system.model.num_classes, target=system.target,
      mean=system.mean, std=system.std, image_size=system.model.image_size,
      cropped=cropped)
  return lambda key, images, labels: Batch(
      *augment(key, images, labels), labels)


def view_shapes(system, phase):
  """Returns the shapes of the `Batch` that a step takes with `views`."""
  model, state = system.model, abstract_state(system, phase)
  size = system.config[phase].batch_size
  images = jax.ShapeDtypeStruct(
      (size, *[model.image_size] * 2, model.channels), jnp.uint8)
  labels = jax.ShapeDtypeStruct(
      (size,), jnp.int32 if system.target is None else jnp.float32)
  return jax.eval_shape(make_batch(system, phase), state.params, state.key,
                        images, labels)._replace(images=None)


def num_views(config, phase):
  """Returns the number of views of each image before the first step; or 0."""
  return config[phase].get('views', 0)


def jitted(step, state, mesh):
  """Jits what `make_step` returns; the state is donated.

  Args:
    step: the training step.
    state: `State` that it will be given, or its shapes.
    mesh: devices; the new state is sharded over them as the old one is, metrics
      are replicated.
  """
  return jax.jit(step, donate_argnums=0, out_shardings=(
      sharded.shardings(state, mesh), mesh_lib.replicated(mesh)))


def _fresh_at(begins, tx, trained, opt_state):
  """Returns a new optimizer state where a round begins, [] bool, else the old.
  """
  return jax.tree.map(lambda new, old: jnp.where(begins, new, old),
                      tx.init(trained), opt_state)


def _optimizer(system, phase, steps):
  return optimizer.make_optimizer(
      system.config[phase], steps, stacks=plan.groups(system.model),
      undecayed=phases.PHASES[phase].undecayed)


def augmentation(config, phase):
  """Returns `config.data` with the augmentation of a phase.

  Images are neither mixed nor repeated if a reward or the dense teacher needs
  one true class, or a policy decides for each image; nor are they distorted,
  since the policy would learn from images that never occur at inference. Views
  are repeats themselves.
  """
  config_data = config.data.copy_and_resolve_references()
  if (phases.PHASES[phase].teacher
      or phases.decider(config, phase) == 'policy'):
    config_data.mixup = config_data.cutmix = 0.
    config_data.rand_augment.magnitude = config_data.color_jitter = 0.
    config_data.erasing = 0.
    config_data.repeats = 1
    for field in ('crop_padding', 'resized_crop'):
      if config_data[f'policy_{field}'] is not None:
        config_data[field] = config_data[f'policy_{field}']
  if num_views(config, phase):
    config_data.repeats = 1
  return config_data


def _trained(params, phase):
  """Returns the groups with a gradient; 'heads' is missing without added exits.
  """
  return {group: params[group] for group in phases.PHASES[phase].trains
          if group in params}


def _averaged(params, phase):
  """Returns the groups to average; batch statistics go with the backbone."""
  groups = phases.PHASES[phase].trains
  if 'backbone' in groups:
    groups = (*groups, 'batch_stats')
  return {group: params[group] for group in groups if group in params}
