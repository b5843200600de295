"""Reads a run back from its work directory, without its optimizer."""

import json
import types

from ml_collections import config_dict

from adavit_jax.train import checkpoints
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib


def find(workdir, *, phase='', best=False):
  """Finds a checkpoint and what it says of itself.

  Args:
    workdir: directory of a run.
    phase: end of this phase; '' for the newest checkpoint.
    best: the best of the last phase instead.

  Returns:
    (kind, step, info). Fields of `info['config']` that are younger than the
    run have their defaults.

  Raises:
    ValueError: if there is none.
  """
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    if best:
      found = [('best', step) for step in ckpts.steps('best')]
    elif phase:
      found = [('phases', step) for step in ckpts.steps('phases')
               if ckpts.info(step, 'phases')['phase'] == phase]
    else:
      found = [ckpts.latest()] if ckpts.latest() else []
    if not found:
      what = (f'end of the phase {phase!r}' if phase
              else 'best checkpoint' if best else 'checkpoint')
      raise ValueError(f'{workdir!r} holds no {what}; train there first, or '
                       f'give the --workdir of another run')
    kind, step = found[-1]
    info = ckpts.info(step, kind)
    return kind, step, {**info, 'config': with_defaults(info['config'])}


def with_defaults(saved):
  """A saved config, a dict, with the fields that are younger than it."""
  defaults = json.dumps(config_lib.default_config().to_dict())
  return _merge(json.loads(defaults), saved)


def _merge(defaults, values):
  merged = {k: _merge(defaults[k], v)
            if isinstance(v, dict) and isinstance(defaults.get(k), dict) else v
            for k, v in values.items()}
  return {**defaults, **merged}


def system(info):
  """The `System` that a checkpoint's info describes."""
  return system_lib.create(config_dict.ConfigDict(info['config']),
                           types.SimpleNamespace(**info['dataset']))


def state(wanted, mesh, workdir, *, phase='', best=False):
  """Restores a checkpoint for a system, without the optimizer state.

  Args:
    wanted: `System` that the checkpoint must fit.
    mesh: devices to put it on, replicated.
    workdir: directory of a run.
    phase: as in `find`.
    best: as in `find`.

  Returns:
    `State` whose `opt_state` is None.

  Raises:
    ValueError: if there is no such checkpoint, or it is of another model.
  """
  kind, step, info = find(workdir, phase=phase, best=best)
  saved = system(info)
  if type(saved) is not type(wanted):
    raise ValueError(
        f"{workdir!r} holds a run of {info['config']['model']['name']!r}, "
        f'which has nothing to give to {wanted.config.model.name!r}: one of '
        f'them has exits and the other has not; give another init.workdir')
  like = step_lib.abstract_state(saved, info['phase'])
  shapes = mesh_lib.put_shapes(
      step_lib.abstract_state(wanted, info['phase']), mesh)
  # Whether there is an average is the checkpoint's affair, not the model's.
  ema = None
  if like.ema is not None:
    ema = {group: shapes.params[group] for group in like.ema}
  params = shapes.params
  if info['phase'] == 'dense':
    # The policy has not been trained: another one may take its place.
    params = {'vit': params['vit']}
  fields = dict(params=params, ema=ema, stats=shapes.stats,
                candidates=shapes.candidates, log_price=shapes.log_price,
                teacher=shapes.teacher, key=shapes.key, step=shapes.step)
  if info['phase'] == 'dense':
    fields = {k: fields[k] for k in ('params', 'ema', 'step', 'key')}
  fields = {k: v for k, v in fields.items() if v is not None}
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    found = ckpts.restore(fields, step, kind, partial=True)
  fresh = system_lib.init_state(wanted, wanted.config.seed)
  found['params'] = {**fresh.params, **found['params']}
  return fresh.replace(**found)
