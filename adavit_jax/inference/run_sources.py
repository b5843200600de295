"""What can be loaded: work directories, and runs in files."""

import copy
import difflib
import os

from adavit_jax import paths
from adavit_jax import trained
from adavit_jax.policies import knob
from adavit_jax.policies import value
from adavit_jax.runs import run_file
from adavit_jax.runs import saved_run
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train.phases.phase import choice
from adavit_jax.weights import files


def absolute(source):
  """Returns a source such that it is the same in other directories.

  Args:
    source: see `workdir` of `loading.load`.
  """
  path = paths.expanded(source, 'source')
  if _is_name(source) or '://' in path:
    return path
  return os.path.abspath(path)


def opened(source):
  """Opens a source: a `Run` or a `RunFile`, context managers.

  Args:
    source: see `workdir` of `loading.load`.

  Raises:
    ValueError: if it is a name that no model of the package has, or as these.
  """
  path, names = paths.expanded(source, 'source'), trained.names()
  if _is_name(source):
    return run_file.RunFile(trained.path(path))
  if path.startswith(files.HUB):
    return run_file.RunFile(path)
  if path.endswith(run_file.SUFFIX):
    if '://' in path:
      raise ValueError(f'{path}: a file is read from a local path or '
                       f'{files.HUB}OWNER/NAME; copy it first')
    return run_file.RunFile(path)
  if os.path.basename(path) == path and not os.path.exists(path):
    close = difflib.get_close_matches(path, names, n=1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(f'there is no directory {path!r}, and no model of that '
                     f'name: {hint}known are {", ".join(names)}')
  return saved_run.Run(path, alone=True)


def _is_name(source):
  # pathlib turns './NAME', a directory, into 'NAME'.
  return isinstance(source, str) and source in trained.names()


def read(run, *, phase, best, actions, rule, thresholds, decide, **attributes):
  """Reads a checkpoint for a system that may differ from the run's.

  Args:
    run: from `opened`.
    phase: this and the others: see `loading.load`. actions and thresholds are
      only checked.

  Returns:
    (info of the checkpoint with the config of the system, `System`, `State`).

  Raises:
    ValueError: as `loading.load`.
  """
  of_exits = dict(rule=rule, thresholds=thresholds)
  return saved_run.reread(lambda: _read(
      run, phase, best, rule, decide, attributes, actions, of_exits))


def _read(run, phase, best, rule, decide, attributes, actions, of_exits):
  saved = run.find(phase=phase, best=best)
  info = copy.deepcopy(saved.info)
  if not phase:
    run.warn_of_unfinished()
  if rule is not None:
    info['config']['exits']['rule'] = rule
  if decide is not None:
    choice('decide', decide, tuple(knob.KNOBS))
    info['config']['nets']['decide'] = decide
  saved_run.set_attributes(info['config'], attributes)
  system = saved_run.system(info)
  exits = system.staged
  if decide is not None and system.nets is None:
    raise ValueError(f'decide={decide!r} is for a policy, but {run.workdir} '
                     f'holds a model without one; leave it out')
  if exits and system.num_exits == 1 and of_exits['thresholds'] is not None:
    raise ValueError(f"thresholds={of_exits['thresholds']!r} are for early "
                     f'exits, but {run.workdir} holds a model with a single '
                     f'exit; leave them out')
  unused = dict(actions=actions) if exits else of_exits
  for name, given in unused.items():
    if given is not None:
      needed, actual = (('without', 'with') if exits else ('with', 'without'))
      raise ValueError(f'{name}={given!r} is for a model {needed} exits, but '
                       f'{run.workdir} holds a model {actual} exits; leave it '
                       f'out')
  state = run.state(saved, system, mesh_lib.local_mesh())
  if decide == 'value' and not (
      system.nets and value.is_fitted(state.params['value'])):
    raise ValueError(f"decide='value' needs a run with the phase warm_start, "
                     f"but {run.workdir} has fitted no value policy after "
                     f"{info['phase']!r}; leave it out")
  return info, system, state
