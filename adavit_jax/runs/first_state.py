"""The first state of a run: resumed, from another run, from weights or new.

The functions take a `loop.Trainer` and read its system, data and config.
"""

from typing import NamedTuple

from absl import logging
from clu import parameter_overview

from adavit_jax.policies import value
from adavit_jax.runs import checkpoints
from adavit_jax.runs import checks
from adavit_jax.runs import devices
from adavit_jax.runs import history
from adavit_jax.runs import pretrained
from adavit_jax.runs import saved_run
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib


class Origin(NamedTuple):
  """What is known of the run that a run started from, if any.

  A checkpoint's info has the same fields.

  Attributes:
    began_from: phase of its checkpoint; '' without such a run.
    had_price: whether it set the price of MACs.
    policy_learned: whether it trained the policy.
  """
  began_from: str = ''
  had_price: bool = False
  policy_learned: bool = False


class FirstState(NamedTuple):
  """Where training starts or goes on.

  Attributes:
    state: `State`, laid out as `sharded.put` does.
    index: index of its phase in the config.
    start: step at which that phase began.
    origin: `Origin` of the run.
    entered: whether the state was prepared for the phase, see
      `phase_start.enter`.
    due: whether what follows the step, such as a validation, is still to be
      done.
  """
  state: state_lib.State
  index: int
  start: int
  origin: Origin
  entered: bool = False
  due: bool = False


def resume(trainer, ckpts):
  """Restores the newest checkpoint, or if it is damaged, the one before it.

  Args:
    trainer: `loop.Trainer`.
    ckpts: `Checkpoints` of its directory, with at least one.

  Returns:
    `FirstState`.

  Raises:
    ValueError: if it is of another config or model, or of other images, or all
      are damaged.
  """
  while True:
    kind, step = ckpts.latest()
    try:
      return _restored(trainer, ckpts, kind, step)
    except checkpoints.Damaged as error:
      logging.warning('%s\nthe one before it is used', error)
      ckpts.discard(kind, step)


def _restored(trainer, ckpts, kind, step):
  config, workdir = trainer.config, trainer.workdir
  info = ckpts.info(step, kind)
  info = {**info, 'config': saved_run.with_defaults(info['config'])}
  checks.same_run(info, config, workdir, nets=trainer.system.nets is not None)
  checks.same_classes(info, trainer.dataset, workdir)
  checks.same_images(info, trainer.dataset, workdir)
  # An older checkpoint than the newest may need a teacher again.
  trainer.read_teacher(saved_run.Saved(kind, step, info))
  shapes = step_lib.abstract_state(
      trainer.system, info['phase'],
      teacher='teacher' in ckpts.groups(step, kind))
  state = ckpts.restore(sharded.put_shapes(shapes, trainer.mesh), step, kind)
  logging.info('resumed from step %d, phase %s', step, info['phase'])
  devices.say_if_others(info.get('devices'), trainer.mesh)
  origin = Origin(*(info[field] for field in Origin._fields))
  index = list(config.phases).index(info['phase'])
  if info['finished']:
    # Only missing if the run was killed right after the best checkpoint.
    ckpts.save(step, state, info, pin=True)
    return FirstState(state, index + 1, step, origin)
  return FirstState(state, index, info['start'], origin, entered=True,
                    due=info.get('due', False))


def begin(trainer, weights=None):
  """Returns the `FirstState` of a new run.

  Args:
    trainer: `loop.Trainer`.
    weights: groups of `init.weights`, or None.

  Raises:
    ValueError: as `from_run`.
  """
  if trainer.config.init.workdir:
    state, origin = from_run(trainer)
    return FirstState(state, 0, 0, origin)
  config = trainer.config
  state = state_lib.init_state(trainer.system, config.seed)
  if weights is not None:
    state = state.replace(params={**state.params, **weights})
    logging.info('initialized from %s', config.init.weights)
  state = sharded.put(state, trainer.mesh)
  logging.info('%s', parameter_overview.get_parameter_overview(
      {group: tree for group, tree in state.params.items()
       if group in ('backbone', 'heads', 'policy')}, include_stats=False))
  if weights is not None:
    pretrained.warn_near_chance(trainer, state.params)
  return FirstState(state, 0, 0, Origin())


def from_run(trainer):
  """Starts from the run in `init.workdir`.

  Args:
    trainer: `loop.Trainer`.

  Returns:
    (`State`, `Origin`).

  Raises:
    ValueError: if that run is of another model, or does not fit this one's
      data and phases.
  """
  config = trainer.config
  init = config.init
  with saved_run.Run(init.workdir) as run:
    info, state = saved_run.reread(lambda: _read(trainer, run))
  if (trainer.system.nets and config.nets.decide == 'value'
      and 'warm_start' not in config.phases
      and not value.is_fitted(state.params['value'])):
    raise ValueError(f"nets.decide='value', but {init.workdir} has fitted no "
                     f"value policy at the end of its phase {info['phase']!r}; "
                     f"add 'warm_start' to config.phases, or set "
                     f"nets.decide='networks'")
  logging.info('initialized from %s, step %d', init.workdir, state.step)
  state = state_lib.restart(state, config.seed)
  state = state.replace(key=sharded.put(state.key, trainer.mesh))
  return state, Origin(info['phase'], history.has_price(info),
                       history.policy_has_learned(info))


def _read(trainer, run):
  """Returns (info, `State`) of another run's checkpoint to start from."""
  config = trainer.config
  saved = run.find(phase=config.init.phase)
  info = saved.info
  if not config.init.phase:
    run.warn_of_unfinished()
  if not phases.PHASES[config.phases[0]].from_scratch:
    checks.same_classes(info, trainer.dataset, config.init.workdir)
  checks.same_holdout(info, config, trainer.dataset)
  if (trainer.system.nets and 'warm_start' not in config.phases
      and history.policy_has_learned(info)):
    checks.same_search(info, config, trainer.dataset)
  _check_order(trainer, info)
  checks.mask_goes_on(info, config)
  return info, run.state(saved, trainer.system, trainer.mesh)


def _check_order(trainer, info):
  """Checks that another run's heads are not kept if the backbone changes."""
  model = trainer.system.model
  exits = tuple(map(tuple, info['config']['model']['exits'] or ()))
  if model.exits and exits == model.exits:
    phases.check_order(
        trainer.system, [*history.so_far(info), *trainer.config.phases],
        f' of {trainer.config.init.workdir}')
