"""Reads a run back from its work directory, without its optimizer."""

import json
import types

from absl import logging
import jax
from ml_collections import config_dict

from adavit_jax import data
from adavit_jax.train import checkpoints
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import staged
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
    run have their defaults, or what the run did where that is another thing.

  Raises:
    ValueError: if there is none, or both phase and best are given.
  """
  if best and phase:
    raise ValueError(f'phase={phase!r} and best=True are two checkpoints, the '
                     f'best one is of the last phase: give one of them')
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


# What runs did before there was the field, where that is not the default.
_BEFORE = {'nets': {'head': False}}


def with_defaults(saved):
  """A saved config, a dict, with the fields that are younger than it.

  They have their defaults, but for those of `_BEFORE`.
  """
  defaults = json.dumps(config_lib.default_config().to_dict())
  return _merge(_merge(json.loads(defaults), _BEFORE), saved)


def _merge(defaults, values):
  merged = {k: _merge(defaults[k], v)
            if isinstance(v, dict) and isinstance(defaults.get(k), dict) else v
            for k, v in values.items()}
  return {**defaults, **merged}


def system(info):
  """The `System` that a checkpoint's info describes."""
  dataset = {'target': None, **info['dataset']}
  if dataset['target'] is not None:
    dataset['target'] = data.Target(*dataset['target'])
  return system_lib.create(config_dict.ConfigDict(info['config']),
                           types.SimpleNamespace(**dataset))


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
  groups = _common_groups(saved, wanted, info)
  if not groups:
    raise ValueError(
        f"{workdir!r} holds a run of {info['config']['model']['name']!r}, "
        f'which has nothing to give to {wanted.config.model.name!r}: one of '
        f'them has branches and the other has not; give another init.workdir')
  if isinstance(wanted, staged.StagedSystem) and (
      wanted.nets is not None and 'policy' not in groups):
    raise ValueError(f"{workdir!r} has no trained policy at the end of its "
                     f"phase {info['phase']!r}, which exits.policy=True needs; "
                     f'set --config.init.phase=joint, or another init.workdir')
  # Of any number of heads the parameters have the same shapes.
  num_heads = [x.backbone.num_heads for x in (saved, wanted)]
  if num_heads[0] != num_heads[1]:
    raise ValueError(f'{workdir!r} holds a model with num_heads={num_heads[0]}'
                     f' and this one has {num_heads[1]}; set '
                     f'--config.model.num_heads={num_heads[0]}')
  if 'policy' in groups:
    _check_nets(saved.config.nets, wanted.config.nets, workdir)
  like = step_lib.abstract_state(saved, info['phase'])
  fresh = system_lib.init_state(wanted, wanted.config.seed)
  shapes = mesh_lib.put_shapes(jax.eval_shape(lambda: fresh), mesh)
  params = {group: shapes.params[group] for group in groups}
  fields = dict(params=params, key=shapes.key, step=shapes.step)
  # Whether there is an average is the checkpoint's affair, not the model's.
  averaged = groups.intersection(like.ema or ())
  if averaged:
    fields['ema'] = {group: shapes.params[group] for group in averaged}
  alike = type(saved) is type(wanted)
  if alike:
    fields['teacher'] = like.teacher and shapes.params['vit']
  if 'policy' in groups:
    fields['stats'] = shapes.stats
    if alike:
      fields.update(candidates=shapes.candidates, log_price=shapes.log_price)
  fields = {k: v for k, v in fields.items() if v is not None}
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    found = ckpts.restore(fields, step, kind, partial=True)
  found['params'] = {**fresh.params, **found['params']}
  return fresh.replace(**found)


def _check_nets(saved, wanted, workdir):
  """Inputs of other meaning may have the same shapes."""
  differ = [field for field in ('tokens', 'aux', 'head', 'hidden')
            if saved[field] != wanted[field]]
  if differ:
    flags = ' '.join(f'--config.nets.{field}={saved[field]}'
                     for field in differ)
    raise ValueError(f'{workdir!r} holds policy networks with other inputs '
                     f'than the config; set {flags}, or, for new networks, '
                     f'--config.init.phase=dense')


def unfinished(step, info):
  """Where a run stands that has phases to go: a clause, '' at its end.

  Args:
    step: of its newest checkpoint.
    info: of that checkpoint, see `find`.
  """
  phase, phases = info['phase'], list(info['config']['phases'])
  if info['finished'] and phase == phases[-1]:
    return ''
  return (f"at step {step - info['start']} of {info['config'][phase]['steps']} "
          f"of the phase {phase!r} of {', '.join(phases)}")


def warn_of_unfinished(workdir):
  """Logs where a run stands that has phases to go.

  Args:
    workdir: directory of the run.

  Returns:
    Whether it has.
  """
  where = unfinished(*find(workdir)[1:])
  if where:
    logging.warning('%s is %s, and no more than that is read of it; the same '
                    'train.py goes on with it', workdir, where)
  return bool(where)


def sets_price(config, phases):
  """Whether one of some phases finds or steers the price of MACs."""
  return any(name == 'warm_start' or name in ('policy', 'joint')
             and config[name]['reward'] == 'macs' for name in phases)


def had_price(info):
  """Whether the run that a run began from has set the price of MACs.

  Args:
    info: see `find`. Of older runs the phase that they began from tells.
  """
  began_from = info.get('began_from')
  return info.get(
      'had_price', began_from in ('warm_start', 'policy', 'joint'))


def has_price(info):
  """Whether a run, or one that it began from, has set the price of MACs.

  Args:
    info: see `find`.
  """
  phases = list(info['config']['phases'])
  so_far = phases[:phases.index(info['phase']) + 1]
  return sets_price(info['config'], so_far) or had_price(info)


def policy_has_learned(info):
  """Whether policy networks were trained since the last dense phase.

  Args:
    info: see `find`.
  """
  phases, init = list(info['config']['phases']), info['config']['init']
  # Older runs do not say what they began from; the newest phase of another run
  # was most likely its last one.
  before = info.get('began_from',
                    init['phase'] or ('joint' if init['workdir'] else ''))
  been = [before, *phases[:phases.index(info['phase']) + 1]][::-1]
  since = been[:been.index('dense')] if 'dense' in been else been
  return not {'warm_start', 'policy', 'joint'}.isdisjoint(since)


def _common_groups(saved, wanted, info):
  """Names of the parameter groups that a run can give to a system."""
  if type(saved.backbone) is not type(wanted.backbone):
    return set()
  groups = {'vit'}
  exits = [getattr(x.model, 'exits', None) for x in (saved, wanted)]
  if exits[0] and exits[0] == exits[1]:
    groups.add('heads')
  # In place of one that has learned nothing another one may come.
  if saved.nets and wanted.nets and policy_has_learned(info):
    groups.add('policy')
  return groups
