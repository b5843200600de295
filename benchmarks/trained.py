"""Rows of trained policies, as their users run them."""

import functools
import json
import os

from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.policies import fixed
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import restore
import timing


def rows(workdir, batches, *, repeats, threshold=None, data_dir=None):
  """Times `adavit_jax.load(workdir)` on test images against its dense model.

  Both start from uint8 images in NumPy and end with a `Prediction`. At batch 1
  a round classifies 32 images one by one.

  Args:
    workdir: directory of a run with a trained policy.
    batches: batch sizes.
    repeats: rounds; each sees other images.
    threshold: the policy's; None takes report.json's, else the config's.
    data_dir: replaces the config's.

  Yields:
    dicts of `timing.row`.
  """
  info = restore.find(workdir)[2]
  config = config_dict.ConfigDict(info['config'])
  if data_dir:
    config.data.data_dir = data_dir
  clf = adavit_jax.load(workdir, max_batch_size=max(batches))
  for value in (_calibrated(workdir), threshold):
    if value is not None:
      clf.threshold = value
  system = clf.system
  state = restore.state(system, mesh_lib.make_mesh(1), workdir)
  dense = adavit_jax.Classifier(
      system, state.replace(params={'vit': state.teacher}, ema=None),
      actions=fixed.all_layers(system.model.num_adaptive),
      max_batch_size=max(batches))
  test = data.load(config.data, seed=config.seed).test
  name = os.path.basename(os.path.normpath(workdir))
  for batch in batches:
    count = 32 if batch == 1 else 1
    rng = np.random.default_rng(0)
    images = [test.images(rng.integers(0, len(test), count * batch))
              for _ in range(repeats + 1)]
    def run(model):
      return lambda i: [model(images[i][k * batch:(k + 1) * batch])
                        for k in range(count)]
    predictions = [p for i in range(1, repeats + 1) for p in run(clf)(i)]
    keep = np.mean([p.actions.keep.mean() for p in predictions])
    ratio = (np.mean([p.macs for p in predictions]) / system.plain_cost.dense)
    times = timing.alternate({'dense': run(dense), 'policy': run(clf)}, repeats)
    times = {k: t / count for k, t in times.items()}
    mode = 'policy, cond' if batch == 1 else 'policy, compact'
    row = functools.partial(timing.row, dtype=config.dtype)
    yield row(name, 'dense', batch, 1, times['dense'], times['dense'], 1)
    yield row(name, mode, batch, keep, times['policy'], times['dense'], ratio)


def _calibrated(workdir):
  path = os.path.join(workdir, 'report.json')
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as f:
    return json.load(f)['adaptive']['threshold']
