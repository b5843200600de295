"""Loads a trained run as a Python function."""

import copy
import functools
import os

from adavit_jax.exits import confidence
from adavit_jax.inference import pickling
from adavit_jax.inference.cascade_classifier import CascadeClassifier
from adavit_jax.inference.classifier import Classifier
from adavit_jax.policies import knob
from adavit_jax.runs import saved_run
from adavit_jax.runs import workdir as workdir_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train.phases.phase import choice


def load(workdir, *, phase='', best=False, actions=None, rule=None,
         thresholds=None, decide=None, max_batch_size=256, **attributes):
  """Loads a trained run as a `Classifier` on a device of this process.

  With several processes, any of them may call it independently.

  Args:
    workdir: directory of the run.
    phase: the checkpoint at the end of this phase; '' for the newest.
    best: the best checkpoint of the last phase instead.
    actions: for every image, instead of the run's policy or mask: the number of
      a policy of Table 1, a mask or a `Stochastic`, see `Classifier.actions`.
    rule: replaces the config's `exits.rule`; for a model with exits.
    thresholds: for a model with exits, see `CascadeClassifier.thresholds`; None
      lets no image leave early.
    decide: what chooses the layers under a policy, 'networks' or 'value';
      replaces the config's `nets.decide`.
    max_batch_size: images that run at once; larger batches are split.
    **attributes: of the model, instead of the config's: those that may change
      after training, its `unsaved`, e.g. merge=8.

  Returns:
    A `Classifier`. It uses the learned policy after the phases warm_start,
    policy and joint, the mask after a static phase, else all layers. Its
    threshold is the config's `nets.threshold`, its price that of the fit;
    eval.py prints one calibrated to the config's `mac_target`. For a model with
    exits or a regression, a `CascadeClassifier`; eval.py prints thresholds for
    it and writes them to report.json.

  Raises:
    ValueError: if there is no such run, the rule is unknown, thresholds are
      invalid for it, rule or thresholds are given for a model without exits or
      actions for a model with exits, attributes are unknown or do not fit the
      parameters, and as `Classifier`.
  """
  # Absolute, for those who unpickle it elsewhere.
  loaded = functools.partial(pickling.Loaded, load, _absolute(workdir), dict(
      phase=phase, best=best, actions=actions, rule=rule, thresholds=thresholds,
      decide=decide, max_batch_size=max_batch_size, **attributes))
  with saved_run.Run(workdir, alone=True) as run:
    info, system, state = saved_run.reread(lambda: _read(
        run, phase, best, actions, rule, thresholds, decide, attributes))
  class_names = info['dataset']['class_names']
  if system.staged:
    if thresholds is None:
      thresholds = confidence.NEVER
    clf = CascadeClassifier(
        system, state, info['phase'], thresholds=thresholds,
        class_names=class_names, max_batch_size=max_batch_size)
  else:
    if actions is None:
      actions = system.after(info['phase']).actions
    clf = Classifier(system, state, actions=actions, class_names=class_names,
                     max_batch_size=max_batch_size)
  clf.loaded = loaded(int(state.step))
  return clf


def _absolute(workdir):
  path = workdir_lib.expanded(workdir)
  return path if '://' in path else os.path.abspath(path)


def _read(run, phase, best, actions, rule, thresholds, decide, attributes):
  """Returns (info, `System`, `State`) of a checkpoint; arguments as in `load`.
  """
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
  unused = dict(actions=actions) if exits else dict(
      rule=rule, thresholds=thresholds)
  for name, value in unused.items():
    if value is not None:
      needed, actual = (('without', 'with') if exits else ('with', 'without'))
      raise ValueError(f'{name}={value!r} is for a model {needed} exits, but '
                       f'{run.workdir} holds a model {actual} exits; leave it '
                       f'out')
  state = run.state(saved, system, mesh_lib.local_mesh())
  if decide == 'value' and not (
      system.nets and value.is_fitted(state.params['value'])):
    raise ValueError(f"decide='value' needs a run with the phase warm_start, "
                     f"but {run.workdir} has fitted no value policy after "
                     f"{info['phase']!r}; leave it out")
  return info, system, state
