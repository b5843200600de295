"""A run on disk: opens it, finds its checkpoints and restores their states."""

import ast
import contextlib
import json
import types
from typing import Any, NamedTuple

from absl import logging
import jax
from ml_collections import config_dict

from adavit_jax import data
from adavit_jax import paths
from adavit_jax.models import registry
from adavit_jax.runs import checkpoints
from adavit_jax.runs import common_groups
from adavit_jax.runs import history
from adavit_jax.train import config as config_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib

# Fields of `config.data` in runs of earlier versions.
_RENAMED = {'colour_jitter': 'color_jitter'}
_TRIES = 5  # attempts to read checkpoints that a running training replaces


class Replaced(ValueError):
  """A running training replaced a checkpoint that was being read."""


def reread(read):
  """Reads from a run, and retries if its training replaces the checkpoint.

  A running training keeps one best checkpoint and few of the last ones. If the
  checkpoint is damaged, the one before it is read.

  Args:
    read: function that finds a checkpoint and reads everything from it; a retry
      calls it again from the start, so that checkpoints are never mixed.

  Returns:
    The result of `read`.

  Raises:
    Damaged: if the checkpoint is damaged and no attempt is left.
    Replaced: if the checkpoint was replaced in every attempt. In a job of
      several processes there is one attempt: reads are collective, and a
      process that retries alone would wait for the others forever.
  """
  for _ in range(_TRIES - 1 if jax.process_count() == 1 else 0):
    try:
      return read()
    except Replaced as error:
      logging.warning('%s; reading the newer one', error)
    except checkpoints.Damaged as error:
      logging.warning('%s\nreading the one before it', error)
  return read()


class Saved(NamedTuple):
  """A checkpoint of a run.

  Attributes:
    kind: 'last', 'best', 'phases', or 'file' for a `run_file`.
    step: step of the checkpoint.
    info: see `loop.Trainer.info`. Missing fields of its config are filled with
      defaults.
  """
  kind: str
  step: int
  info: dict[str, Any]


class Run:
  """An opened run; a context manager.

  Attributes:
    workdir: directory of the run.
    card: {}; a run in a file has one, see `run_file`.
  """
  card = types.MappingProxyType({})

  def __init__(self, workdir, *, alone=False):
    """Opens the checkpoints of a directory, which may have none.

    Args:
      workdir: directory of the run.
      alone: whether this process reads independently; otherwise all processes
        must make the same calls.

    Raises:
      ValueError: if it is no directory but a run in one file.
    """
    self.workdir = workdir = paths.expanded(workdir, 'workdir')
    if workdir.endswith('.safetensors'):
      raise ValueError(f'{workdir} is a file; a work directory is needed here. '
                       f'A run in one file is for adavit_jax.load, predict.py '
                       f'and export.py')
    self._checkpoints = checkpoints.Checkpoints(
        workdir, read_only=True, alone=alone)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._checkpoints.close()

  def newest(self):
    """Returns the newest `Saved`, or None."""
    def read():
      latest = self._checkpoints.latest()
      return None if latest is None else self._saved(*latest)
    return reread(read)

  def find(self, *, phase='', best=False):
    """Finds a checkpoint.

    Args:
      phase: the checkpoint at the end of this phase; '' for the newest.
      best: the best checkpoint of the last phase instead.

    Returns:
      `Saved`.

    Raises:
      ValueError: if there is none, or if phase and best are both given.
    """
    if best and phase:
      raise ValueError(f'phase={phase!r} and best=True exclude each other: the '
                       f'best checkpoint is of the last phase; give one of '
                       f'them')
    return reread(lambda: self._saved(*self._which(phase, best)))

  def _which(self, phase, best):
    ckpts = self._checkpoints
    if best:
      steps = [('best', step) for step in ckpts.steps('best')]
    elif phase:
      steps = [('phases', step) for step in ckpts.steps('phases')
               if self._info('phases', step)['phase'] == phase]
    else:
      steps = [ckpts.latest()] if ckpts.latest() else []
    if not steps:
      wanted = (f'end of the phase {phase!r}' if phase
                else 'best checkpoint' if best else 'checkpoint')
      raise ValueError(f'{self.workdir!r} has no {wanted}; train there first, '
                       f'or give the --workdir of another run')
    return steps[-1]

  def _info(self, kind, step):
    with self._reading(kind, step):
      return self._checkpoints.info(step, kind)

  def _saved(self, kind, step):
    return saved(kind, step, self._info(kind, step))

  @contextlib.contextmanager
  def _reading(self, kind, step):
    """Raises `Replaced` for errors of a checkpoint that was replaced."""
    try:
      yield
    except Exception as error:  # many types, since files vanish one by one
      steps = self._checkpoints.steps(kind)
      stays = step in steps if kind == 'phases' else steps[-1:] == (step,)
      if stays:
        if isinstance(error, checkpoints.Damaged):
          self._checkpoints.discard(kind, step)
        raise
      raise Replaced(f'the checkpoint {kind}/{step} of {self.workdir!r} was '
                     f'replaced by its training during the read; try again'
                     ) from error

  def warn_of_unfinished(self):
    """Logs the progress of an unfinished run; returns whether it is unfinished.
    """
    saved = self.find()
    progress = history.unfinished(saved.step, saved.info)
    if progress:
      logging.warning('%s is unfinished and read %s; the same train.py command '
                      'resumes it', self.workdir, progress)
    return bool(progress)

  def state(self, saved, wanted, mesh):
    """Restores a checkpoint for a system, without the optimizer state.

    Args:
      saved: `Saved`.
      wanted: `System` that the checkpoint must fit.
      mesh: devices to put it on, see `sharded.put`.

    Returns:
      `State` whose `opt_state` is None; groups of parameters that the run does
      not provide are new.

    Raises:
      Replaced: if a running training replaced the checkpoint.
      ValueError: if the checkpoint is of another model.
    """
    groups = common_groups.common_groups(
        system(saved.info), wanted, saved.info, self.workdir)
    init = lambda: state_lib.init_state(wanted, wanted.config.seed)
    fresh = sharded.put_shapes(jax.eval_shape(init), mesh)
    model = state_lib.model_params(fresh.params)
    groups |= set(model)
    fields = dict(
        params={group: fresh.params[group] for group in groups},
        key=fresh.key, step=fresh.step, log_price=fresh.log_price)
    with self._reading(saved.kind, saved.step):
      kept = self._checkpoints.groups(saved.step, saved.kind)
    if averaged := groups.intersection(kept.get('ema', ())):
      fields['ema'] = {group: fresh.params[group] for group in averaged}
    if 'teacher' in kept:
      fields['teacher'] = model
    with self._reading(saved.kind, saved.step):
      restored = self._checkpoints.restore(
          fields, saved.step, saved.kind, partial=True)
    new = new_groups(init, set(fresh.params) - groups, mesh)
    restored['params'] = {**new, **restored['params']}
    return state_lib.State(**{
        **dict(opt_state=None, ema=None, teacher=None), **restored})


def new_groups(init, names, mesh):
  """Returns new groups of parameters.

  Args:
    init: function that returns a new `State`.
    names: of the groups.
    mesh: devices to put them on, see `sharded.put`.
  """
  # Under jit only these groups are computed.
  return sharded.put(jax.jit(lambda: {
      name: init().params[name] for name in names})(), mesh)


def saved(kind, step, info):
  """Returns the `Saved` of a checkpoint's info as it was written."""
  config_lib.import_module(info['config']['model']['module'])
  return Saved(kind, step, {**info, 'config': with_defaults(info['config'])})


def with_defaults(saved):
  """Fills missing fields of a saved config, a dict, with defaults."""
  defaults = json.dumps(config_lib.default_config().to_dict())
  saved = {**saved, 'data': {_RENAMED.get(name, name): value
                             for name, value in saved['data'].items()}}
  return _merge(json.loads(defaults), saved)


def _merge(defaults, values):
  merged = {k: _merge(defaults[k], v)
            if isinstance(v, dict) and isinstance(defaults.get(k), dict) else v
            for k, v in values.items()}
  return {**defaults, **merged}


def parse_attributes(texts):
  """Parses texts NAME=VALUE of the flag --model into {name: value}.

  Raises:
    ValueError: if one has another form.
  """
  attributes = {}
  for text in texts or ():
    name, _, value = text.partition('=')
    try:
      attributes[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      example = '--model="merge=8,merge_schedule=\'falling\'"'
      raise ValueError(f'--model={text} must be NAME=VALUE; texts need quotes '
                       f'inside those of the shell: {example}') from None
  return attributes


def set_attributes(config, attributes):
  """Changes attributes of a trained model in its saved config, a dict.

  Args:
    config: the config.
    attributes: {name: value}; of those on which no parameters of the backbone
      depend, its `unsaved`.

  Raises:
    ValueError: if an attribute is none of these.
  """
  known = registry.unsaved(config['model']['name'])
  for name, value in attributes.items():
    if name not in known:
      raise ValueError(f'{name}={value!r} cannot change after training; of '
                       f"{config['model']['name']!r}, these can: "
                       f'{sorted(known)}')
    config['model'][name] = value


def system(info):
  """Returns the `System` that a checkpoint's info describes."""
  dataset = {'target': None, **info['dataset']}
  if dataset['target'] is not None:
    dataset['target'] = data.Target(*dataset['target'])
  return system_lib.create(config_dict.ConfigDict(info['config']),
                           types.SimpleNamespace(**dataset))
