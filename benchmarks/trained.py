"""Rows of trained policies and cascades, as their users run them."""

import functools
import json
import os

import jax
from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.models import stages
from adavit_jax.policies import fixed
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import restore
import timing


def rows(workdir, batches, *, repeats, threshold=None, data_dir=None):
  """Times `adavit_jax.load(workdir)` on test images against its dense model.

  Both start from uint8 images in NumPy and end in NumPy. At batch 1 a round
  classifies 32 images one by one. The dense model of a policy runs all layers,
  that of a cascade all stages in one program.

  Args:
    workdir: directory of a run with a trained policy, or of a model with exits.
    batches: batch sizes.
    repeats: rounds; each sees other images.
    threshold: the policy's or every exit's; None takes report.json's (of a
      cascade the one for `mac_target`), else the config's.
    data_dir: replaces the config's.

  Yields:
    dicts of `timing.row`; keep is the share of adaptive layers that ran, of a
    cascade the share of stages.
  """
  info = restore.find(workdir)[2]
  config = config_dict.ConfigDict(info['config'])
  if data_dir:
    config.data.data_dir = data_dir
  clf = adavit_jax.load(workdir, max_batch_size=max(batches))
  cascade = isinstance(clf, adavit_jax.CascadeClassifier)
  make = _cascade if cascade else _policy
  dense, dense_macs, kept = make(clf, workdir, threshold, max(batches))
  test = data.load(config.data, seed=config.seed).test
  row = functools.partial(
      timing.row, os.path.basename(os.path.normpath(workdir)),
      dtype=config.dtype)
  for batch in batches:
    count = 32 if batch == 1 else 1
    rng = np.random.default_rng(0)
    images = [test.images(rng.integers(0, len(test), count * batch))
              for _ in range(repeats + 1)]
    def run(model):
      return lambda i: [model(images[i][k * batch:(k + 1) * batch])
                        for k in range(count)]
    predictions = [p for i in range(1, repeats + 1) for p in run(clf)(i)]
    keep = np.mean([kept(p) for p in predictions])
    ratio = np.mean([p.macs.mean() for p in predictions]) / dense_macs
    times = timing.alternate({'dense': run(dense), 'ours': run(clf)}, repeats)
    times = {k: t / count for k, t in times.items()}
    mode = ('cascade' if cascade else
            'policy, cond' if batch == 1 else 'policy, compact')
    yield row('dense', batch, 1, times['dense'], times['dense'], 1)
    yield row(mode, batch, keep, times['ours'], times['dense'], ratio)


def _policy(clf, workdir, threshold, max_batch_size):
  """Sets the threshold; (dense model, its MACs, Prediction -> share kept)."""
  found = _reported(workdir, 'adaptive', 'threshold')
  for value in (found, threshold):
    if value is not None:
      clf.threshold = value
  system = clf.system
  state = restore.state(system, mesh_lib.make_mesh(1), workdir)
  dense = adavit_jax.Classifier(
      system, state.replace(params={'vit': state.teacher}, ema=None),
      actions=fixed.all_layers(system.model.num_adaptive),
      max_batch_size=max_batch_size)
  return dense, system.plain_cost.dense, lambda p: p.actions.keep.mean()


def _cascade(clf, workdir, threshold, max_batch_size):
  """As `_policy`, for a `CascadeClassifier`."""
  del max_batch_size
  found = _reported(workdir, 'mac_target', 'thresholds')
  for value in (found, threshold):
    if value is not None:
      clf.thresholds = value
  system, vit = clf.system, jax.device_put(clf.params['vit'])
  every = jax.jit(lambda params, images: stages.exit_logits(
      system.model, params, system.normalize(images))[-1])
  dense = lambda images: np.asarray(every(vit, images))
  num = system.model.num_stages
  return dense, system.cost.dense, lambda p: (1 + p.exit.mean()) / num


def _reported(workdir, row, field):
  path = os.path.join(workdir, 'report.json')
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as f:
    return json.load(f).get(row, {}).get(field)
