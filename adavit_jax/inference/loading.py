"""Loads a trained run as a Python function."""

from adavit_jax.exits import confidence
from adavit_jax.inference import pickling
from adavit_jax.inference import run_sources
from adavit_jax.inference import settings
from adavit_jax.inference.cascade_classifier import CascadeClassifier
from adavit_jax.inference.classifier import Classifier


def load(workdir, *, phase='', best=False, actions=None, rule=None,
         thresholds=None, decide=None, max_batch_size=256, **attributes):
  """Loads a trained run as a `Classifier` on a device of this process.

  With several processes, any of them may call it independently.

  Args:
    workdir: directory of the run. Or a run in one file, see `save`: its path,
      'hf://owner/name', or the name of a model that the package brings, see
      `pretrained`; './NAME' is a directory of the same name.
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
    it and writes them to report.json. A file has the thresholds, layers and
    promise that were saved with it; they are set unless actions, rule,
    thresholds, decide or attributes are given.

  Raises:
    ValueError: if there is no such run, a file is damaged, holds no run or has
      a newer format, the rule is unknown, thresholds are invalid for it, rule
      or thresholds are given for a model without exits, thresholds for one
      with a single exit, actions for a model with exits or decide for a model
      without a policy, attributes are unknown or do not fit the parameters, and
      as `Classifier`.
  """
  arguments = dict(
      phase=phase, best=best, actions=actions, rule=rule, thresholds=thresholds,
      decide=decide, **attributes)
  with run_sources.opened(workdir) as run:
    info, system, state = run_sources.read(run, **arguments)
  as_saved = not attributes and all(
      x is None for x in (actions, rule, thresholds, decide))
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
  if as_saved:
    settings.restore(clf, run.card.get('settings', {}), run.workdir)
  # Absolute, for those who unpickle it elsewhere.
  clf.loaded = pickling.Loaded(
      load, run_sources.absolute(workdir),
      dict(arguments, max_batch_size=max_batch_size), int(state.step))
  return clf
