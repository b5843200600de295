"""The smallest run that has everything: its data, config and model.

Also a config file for train.py: `--config=tests/tiny.py`.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import time

import adavit_jax
from adavit_jax import data
from adavit_jax import models
from adavit_jax.data import splits
from adavit_jax.train import config as config_lib
import jax
import numpy as np

ROOT = str(pathlib.Path(adavit_jax.__file__).parents[1])
PHASES = ('dense', 'warm_start', 'policy', 'joint')
STEPS = 6


def dataset(num_classes=4, seconds=0.):
  """Noise with a bright quadrant for each class; `seconds` slows a batch."""
  rng = np.random.default_rng(0)

  def split(n):
    labels = rng.integers(0, num_classes, n)
    images = rng.integers(0, 100, (n, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
      row, column = divmod(label % 4, 2)
      image[4 * row:4 * row + 4, 4 * column:4 * column + 4] += 100
    return _Slow(images, labels, seconds)

  train, holdout, test = split(40), split(16), split(16)
  mean, std = splits.channel_stats(data.ArraySplit(
      train.images(np.arange(40)), train.labels))
  return data.Dataset(
      train, holdout, test, num_classes=num_classes,
      class_names=tuple(map(str, range(num_classes))), channels=1,
      image_size=8, mean=mean, std=std)


class _Slow(data.ArraySplit):

  def __init__(self, images, labels, seconds):
    super().__init__(images, labels)
    self._seconds = seconds

  def images(self, indices):
    time.sleep(self._seconds)
    return super().images(indices)


def get_config():
  config = config_lib.default_config()
  config.phases = PHASES
  config.data.crop_padding = 1
  config.model.patch_size = 4
  config.model.width = 16
  config.model.depth = 4
  config.model.remat = False  # compiles faster
  config.log_every = 1
  config.eval_every = 100
  config.checkpoint_every = 100  # at the ends of phases alone
  config.num_search = 16
  config.eval_batch_size = 16
  for phase in (*PHASES, 'static'):
    config[phase].steps = STEPS
    config[phase].batch_size = 8
  config.static.optimizer = 'muon'  # the other phases: adamw
  config.nets.bias = 0.  # so that both actions occur
  config.policy.samples = config.joint.samples = 2
  config.dense.ema = 0.5
  return config


def model(**overrides):
  return models.create('vit_digits_patch2_8', **{
      **dict(patch_size=4, width=16, depth=4, num_classes=4), **overrides})


def params(model, seed=0, scale=0.3):
  """Random groups of parameters whose every branch and head matters."""
  shapes = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: rng.normal(size=x.shape, scale=scale).astype(np.float32),
      shapes)


def load(path):
  """The module in a file of the project that is no package's."""
  path = pathlib.Path(ROOT, path)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def command(*args):
  """Arguments of subprocess for this Python in the project's directory."""
  env = dict(os.environ, PYTHONPATH=ROOT)
  return dict(args=[sys.executable, *args], env=env, cwd=ROOT, text=True,
              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
