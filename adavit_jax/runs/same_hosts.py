"""Checks that the processes of a job are about to do the same."""

import copy
import hashlib
import json

import jax
from jax.experimental import multihost_utils
import numpy as np

from adavit_jax import data


def check(config, dataset, saved):
  """Compares what every process has read; all processes call it.

  Args:
    config: see `train.config.default_config`.
    dataset: `Dataset` of the config.
    saved: `saved_run.Saved` that the run resumes from, or None.

  Raises:
    ValueError: on every process, if they differ.
  """
  if jax.process_count() == 1:
    return
  facts = {
      'config': _without_paths(config),
      'images': [dataset.files, data.fingerprint(dataset)],
      'mean and std of the images': [*dataset.mean, *dataset.std],
      'newest checkpoint of the work directory':
          saved and [saved.kind, saved.step]}
  digests = [hashlib.sha256(json.dumps(fact, default=str).encode()).digest()
             for fact in facts.values()]
  everywhere = np.asarray(multihost_utils.process_allgather(
      np.frombuffer(b''.join(digests), np.uint8).reshape(len(facts), -1)))
  for i, name in enumerate(facts):
    others = np.flatnonzero((everywhere[:, i] != everywhere[0, i]).any(-1))
    if len(others):
      raise ValueError(
          f'process {others[0]} has another {name} than process 0; give all '
          f'processes the same command, the same images and one work directory '
          f'that all of them see')


def _without_paths(config):
  """Returns the config as a dict; hosts may keep equal files elsewhere."""
  config = copy.deepcopy(config.to_dict())
  for part, field in (('data', 'data_dir'), ('data', 'cache_dir'),
                      ('data', 'labels'), ('init', 'workdir'),
                      ('init', 'weights'), ('teacher', 'workdir'),
                      ('teacher', 'weights')):
    del config[part][field]
  return config
