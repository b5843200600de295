"""Times trained policies and cascades, as `adavit_jax.load` runs them."""

import functools
import os

import jax
from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.inference import run_sources
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.runs import saved_run
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib
import reports
import timing


def check(workdir, threshold=None):
  """Checks that a run can be timed; returns its `info`, see `saved_run.Saved`.

  Args:
    workdir: the run, as `adavit_jax.load` takes it.
    threshold: as in `rows`.

  Raises:
    ValueError: if there is no checkpoint, or the model has several exits but no
      thresholds.
  """
  with run_sources.opened(workdir) as run:
    info, own = run.find().info, run.card.get('settings', {})
  system = saved_run.system(info)
  many = system.num_exits > 1
  if many and threshold is None and not (own or _thresholds(workdir)):
    raise ValueError(f'{workdir!r} has no thresholds yet, so that no image '
                     f'would leave early; run python eval.py '
                     f'--workdir={workdir} first, or give --threshold')
  return info


def rows(workdir, batches, *, repeats, threshold=None, settings=None,
         data_dir=None, decide=None):
  """Times `adavit_jax.load(workdir)` on test images against its dense model.

  Both take uint8 images in NumPy and return NumPy. At batch size 1 a round
  classifies 32 images one by one. The dense model of a policy runs all layers;
  that of a model with exits has no added exits.

  Args:
    workdir: a run with a trained policy or a model with exits, as
      `adavit_jax.load` takes it.
    batches: batch sizes.
    repeats: number of rounds, each with different images.
    threshold: the threshold of the policy or of all exits. None uses those of
      report.json, for a cascade each in a separate row; without report.json
      those saved with a file, or that of the policy's config.
    settings: {name: threshold, or thresholds of the exits}, each in a separate
      row, instead of `threshold`.
    data_dir: replaces the config's `data.data_dir`.
    decide: what chooses the layers under a policy, see `adavit_jax.load`; the
      number of its knob is the default one unless the report is of it.

  Yields:
    dicts of `timing.row`; keep is the fraction of adaptive layers that ran, for
    a cascade the fraction of stages. After a dense phase only the dense row.

  Raises:
    ValueError: as `check`.
  """
  info = check(workdir, threshold)
  config = config_dict.ConfigDict(info['config'])
  if data_dir:
    config.data.data_dir = data_dir
  # Thresholds of the report fit only the checkpoint and the rule of eval.py.
  report = _report(workdir) if threshold is None else {}
  best = report.get('best', False)
  clf = adavit_jax.load(workdir, rule=report.get('rule'), best=best,
                        decide=decide if saved_run.system(info).nets else None,
                        max_batch_size=max(batches))
  if clf.system.staged:
    dense, dense_macs, kept, defaults = _cascade(clf, workdir, threshold)
  else:
    dense, dense_macs, kept, defaults = _policy(
        clf, workdir, threshold, best, max(batches))
  settings = {name: functools.partial(
      setattr, clf, 'thresholds' if clf.system.staged else clf.knob.name, value)
              for name, value in (settings or {}).items()} or defaults
  test = data.load(config.data, seed=config.seed).test
  row = functools.partial(
      timing.row, os.path.basename(os.path.normpath(workdir)),
      dtype=config.dtype)
  for batch in batches:
    count = 32 if batch == 1 else 1
    rng = np.random.default_rng(0)
    images = [data.center(
        test.images(rng.integers(0, len(test), count * batch)),
        clf.system.model.image_size) for _ in range(repeats + 1)]
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
  """Prepares the comparison of a policy with its dense model.

  Returns:
    (dense model, its MACs, function from a `Prediction` to the fraction kept,
    {name of a setting: function that applies it}).
  """
  system, name = clf.system, clf.knob.name
  if threshold is None:
    threshold = _report(workdir).get('adaptive', {}).get(name)
  if threshold is not None and system.nets is not None:
    setattr(clf, name, threshold)
  with run_sources.opened(workdir) as run:
    state = run.state(run.find(best=best), system, mesh_lib.make_mesh(1))
  if state.teacher is not None:
    state = state.replace(params=state.teacher, ema=None)
  dense = adavit_jax.Classifier(
      system, state, actions=fixed.all_layers(plan.num_layers(system.model)),
      max_batch_size=max_batch_size)
  settings = {}
  if clf.actions is None:
    settings = {'policy': lambda: None}
  elif not clf.actions.keep.all():
    settings = {'static': lambda: None}
  return (dense, system.plain_cost.dense, lambda p: p.actions.keep.mean(),
          settings)


def _cascade(clf, workdir, threshold):
  """As `_policy`, for a `CascadeClassifier`."""
  thresholds = {'threshold given': threshold}
  if threshold is None:
    thresholds = _thresholds(workdir) or {'as saved': clf.thresholds}
  settings = {f'cascade, {name}': functools.partial(
      setattr, clf, 'thresholds', values)
              for name, values in thresholds.items()}
  system = clf.system
  params = jax.device_put(state_lib.model_params(clf.params))
  every = jax.jit(lambda params, images: modes.dense(
      system.model, params, system.normalize(images)).total)
  dense = lambda images: np.asarray(every(params, images))
  num = system.num_exits
  return (dense, system.plain_cost.dense, lambda p: (1 + p.exit.mean()) / num,
          settings)


def _thresholds(workdir):
  """Returns {name of a cascade's row: its thresholds} from report.json."""
  report = _report(workdir)
  names = 'threshold', 'same_accuracy', 'slack', 'mac_target'
  return {name: report[name]['thresholds'] for name in names if name in report}


def _report(workdir):
  """Returns the report.json of a run; {} if eval.py has not been run."""
  return reports.read(workdir, required=False)
