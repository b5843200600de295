"""Rows of trained policies and cascades, as their users run them."""

import functools
import json
import os

import jax
from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.runs import run as run_lib
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib
import timing


def check(workdir, threshold=None):
  """Returns the `info` of a run, see `run.Saved`, that can be timed.

  Args:
    workdir: directory of the run.
    threshold: as in `rows`.

  Raises:
    ValueError: if there is no checkpoint, it ends with the dense phase of a
      model with one exit, or of a model with exits there is no threshold.
  """
  with run_lib.Run(workdir) as run:
    info = run.find().info
  system = run_lib.system(info)
  many = system.num_exits > 1
  if many and threshold is None and not _thresholds(workdir):
    raise ValueError(f'{workdir!r} has no thresholds yet, so that no image '
                     f'would leave; run python eval.py --workdir={workdir} '
                     f'first, or give --threshold')
  if not many and phases.decider(system.config, info['phase']) == 'all':
    raise ValueError(f'{workdir!r} has only its dense phase, and no policy to '
                     f'time; train its other phases, or time its model with '
                     f'--models')
  return info


def rows(workdir, batches, *, repeats, threshold=None, settings=None,
         data_dir=None):
  """Times `adavit_jax.load(workdir)` on test images against its dense model.

  Both start from uint8 images in NumPy and end in NumPy. At batch 1 a round
  classifies 32 images one by one. The dense model of a policy runs all layers,
  that of a model with exits is the model without added ones.

  Args:
    workdir: directory of a run with a trained policy, or of a model with exits.
    batches: batch sizes.
    repeats: rounds; each sees other images.
    threshold: the policy's or every exit's; None takes those of report.json,
      of a cascade each in a row of its own, else, of a policy, the config's.
    settings: {name: threshold, or thresholds of the exits}, each in a row of
      its own, instead of `threshold`.
    data_dir: replaces the config's.

  Yields:
    dicts of `timing.row`; keep is the share of adaptive layers that ran, of a
    cascade the share of stages.

  Raises:
    ValueError: as `check`.
  """
  info = check(workdir, threshold)
  config = config_dict.ConfigDict(info['config'])
  if data_dir:
    config.data.data_dir = data_dir
  # Its thresholds are of the checkpoint and the rule that eval.py was given.
  report = _report(workdir) if threshold is None else {}
  best = report.get('best', False)
  clf = adavit_jax.load(workdir, rule=report.get('rule'), best=best,
                        max_batch_size=max(batches))
  if clf.system.staged:
    dense, dense_macs, kept, usual = _cascade(clf, workdir, threshold)
  else:
    dense, dense_macs, kept, usual = _policy(
        clf, workdir, threshold, best, max(batches))
  settings = {name: functools.partial(
      setattr, clf, 'thresholds' if clf.system.staged else 'threshold', value)
              for name, value in (settings or {}).items()} or usual
  test = data.load(config.data, seed=config.seed).test
  row = functools.partial(
      timing.row, os.path.basename(os.path.normpath(workdir)),
      dtype=config.dtype)
  for batch in batches:
    count = 32 if batch == 1 else 1
    rng = np.random.default_rng(0)
    images = [test.images(rng.integers(0, len(test), count * batch))
              for _ in range(repeats + 1)]
    def run(model, set_up=lambda: None):
      def one_round(i):
        set_up()
        return [model(images[i][k * batch:(k + 1) * batch])
                for k in range(count)]
      return one_round
    runs = {'dense': run(dense),
            **{name: run(clf, set_up) for name, set_up in settings.items()}}
    times = timing.alternate(runs, repeats)
    times = {k: t / count for k, t in times.items()}
    yield row('dense', batch, 1, times['dense'], times['dense'], 1)
    for name in settings:
      predictions = [p for i in range(1, repeats + 1) for p in runs[name](i)]
      keep = np.mean([kept(p) for p in predictions])
      ratio = np.mean([p.macs.mean() for p in predictions]) / dense_macs
      yield row(name, batch, keep, times[name], times['dense'], ratio)


def _policy(clf, workdir, threshold, best, max_batch_size):
  """What is compared, as `rows` needs it.

  Returns:
    (dense model, its MACs, Prediction -> share kept, names of the settings and
    functions that set them).
  """
  if threshold is None:
    threshold = _report(workdir).get('adaptive', {}).get('threshold')
  if threshold is not None:
    clf.threshold = threshold
  system = clf.system
  with run_lib.Run(workdir) as run:
    state = run.state(run.find(best=best), system, mesh_lib.make_mesh(1))
  dense = adavit_jax.Classifier(
      system, state.replace(params=state.teacher, ema=None),
      actions=fixed.all_layers(plan.num_layers(system.model)),
      max_batch_size=max_batch_size)
  return (dense, system.plain_cost.dense, lambda p: p.actions.keep.mean(),
          {'policy' if clf.actions is None else 'static': lambda: None})


def _cascade(clf, workdir, threshold):
  """As `_policy`, for a `CascadeClassifier`."""
  found = (_thresholds(workdir) if threshold is None else
           {'threshold given': threshold})
  settings = {f'cascade, {name}': functools.partial(
      setattr, clf, 'thresholds', values) for name, values in found.items()}
  system = clf.system
  params = jax.device_put(state_lib.model_params(clf.params))
  every = jax.jit(lambda params, images: modes.dense(
      system.model, params, system.normalize(images)).total)
  dense = lambda images: np.asarray(every(params, images))
  num = system.num_exits
  return (dense, system.plain_cost.dense, lambda p: (1 + p.exit.mean()) / num,
          settings)


def _thresholds(workdir):
  """{name: those that eval.py wrote of a cascade}."""
  report = _report(workdir)
  names = 'threshold', 'same_accuracy', 'slack', 'mac_target'
  return {name: report[name]['thresholds'] for name in names if name in report}


def _report(workdir):
  """What eval.py wrote of a run; {} where it has not been run."""
  path = os.path.join(workdir, 'report.json')
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as f:
    return json.load(f)
