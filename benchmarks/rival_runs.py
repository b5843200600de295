"""The runs that `rivals.py` compares: how they are named, loaded and set."""

import ast
import functools
import json
from typing import Any, NamedTuple

from ml_collections import config_dict
import numpy as np

import adavit_jax
from adavit_jax import data
from adavit_jax.exits import confidence
from adavit_jax.exits import cross_validation
from adavit_jax.models import plan
from adavit_jax.policies import fixed
import reports

# How many thresholds or prices of a policy are tried.
_NUM_TRIED = 13


class Rival(NamedTuple):
  """A run and how it is loaded.

  Attributes:
    label: its name in the table.
    workdir: directory of the run.
    settings: {} for the thresholds that it loads with, or one of: row, a row of
      report.json; lost, the share of the held-out images that exits or a policy
      may lose; exit, the index of the exit of all images.
    options: arguments of `adavit_jax.load`.
  """
  label: str
  workdir: str
  settings: dict[str, Any]
  options: dict[str, Any]


def parse(text):
  """Parses LABEL=DIR,KEY=VALUE,...

  Returns:
    `Rival`.

  Raises:
    ValueError: if it has another form, a setting is invalid, or there are two.
  """
  label, equals, rest = text.partition('=')
  workdir, *pairs = rest.split(',')
  options = dict(pair.split('=', 1) for pair in pairs if '=' in pair)
  if not equals or not workdir or len(options) < len(pairs):
    raise ValueError(f'{text!r} is not LABEL=DIR,KEY=VALUE,...')
  options = {k: _value(v) for k, v in options.items()}
  settings = {key: options.pop(key) for key in _SETTERS if key in options}
  if len(settings) > 1:
    raise ValueError(f'{text!r} sets thresholds by {" and ".join(settings)}; '
                     f'give one of them')
  lost = settings.get('lost', 0)
  if not isinstance(lost, (int, float)) or not 0 <= lost <= 1:
    raise ValueError(f'{text!r}: lost is a share in 0..1, such as lost=0.01')
  if not isinstance(settings.get('exit', 0), int):
    raise ValueError(f'{text!r}: exit is an index, such as exit=0')
  return Rival(label, workdir, settings, options)


def _value(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def load(rival, max_batch_size):
  """Loads a rival.

  Args:
    rival: `Rival`.
    max_batch_size: as of `adavit_jax.load`.

  Returns:
    A `Classifier` with the rival's thresholds.

  Raises:
    ValueError: if the rival's settings do not fit its run.
  """
  clf = adavit_jax.load(
      rival.workdir, max_batch_size=max_batch_size, **rival.options)
  for key, value in rival.settings.items():
    _SETTERS[key](clf, value, rival.workdir)
  return clf


def _set_row(clf, row, workdir):
  report = reports.read(workdir)
  if not isinstance(report.get(row), dict):
    raise ValueError(f'row={row!r} is not in report.json of {workdir}')
  name = 'thresholds' if clf.system.staged else clf.knob.name
  if name not in report[row]:
    raise ValueError(f'row={row!r} of {workdir} has no {name}; give a row of '
                     f'exits or of a policy, or leave it out')
  setattr(clf, name, report[row][name])


def _set_exit(clf, index, workdir):
  num = len(clf.system.exits) if clf.system.staged else 0
  if not 0 <= index < num:
    raise ValueError(f'exit={index} is not one of the {num} exits of '
                     f'{workdir}, counted from 0')
  clf.thresholds = [confidence.NEVER if i < index else confidence.ALWAYS
                    for i in range(num - 1)]


def _set_lost(clf, lost, workdir):
  """Sets thresholds for held-out images to lose a share."""
  if not clf.system.staged and clf.actions is not None:
    raise ValueError(f'lost={lost} is for runs with exits or a policy, but '
                     f'{workdir} as it is loaded has neither; leave it out')
  config = clf.system.config
  if not config.data.holdout:
    raise ValueError(f'lost={lost} needs held-out images, but {workdir} has '
                     f'data.holdout=0; give a row')
  held = images_of(config, 'holdout')
  if not clf.system.staged:
    _set_number(clf, held, lost, workdir)
    return
  found = clf.at_exits(held.images)
  clf.thresholds = cross_validation.losing_at_most(
      found.confidence, clf.system.task.score(found.prediction, held.labels),
      found.macs, lost=lost).thresholds


def _set_number(clf, held, lost, workdir):
  """Sets the number of a policy to the one of the fewest MACs that may be.

  Where all of those that are tried lose more, all layers run.
  """
  def accuracy(number):
    setattr(clf, clf.knob.name, number)
    return (clf(held.images).labels == held.labels).mean()

  numbers = clf.knob.sweep(_NUM_TRIED)
  every = fixed.all_layers(plan.num_layers(clf.system.model))
  clf.actions = every
  least = accuracy(numbers[0]) - lost - 1e-9
  clf.actions = None
  kept = [x for x in numbers if accuracy(x) >= least]  # MACs fall
  if kept:
    setattr(clf, clf.knob.name, kept[-1])
  else:
    print(f'{workdir}: the policy loses more than {lost} at every '
          f'{clf.knob.name} that was tried; all layers run')
    clf.actions = every


_SETTERS = dict(row=_set_row, lost=_set_lost, exit=_set_exit)


class Images(NamedTuple):
  """Images uint8 [n, S, S, C] at the size of their run, and labels [n]."""
  images: np.ndarray
  labels: np.ndarray


def images_of(config, name):
  """Returns `Images` of a split of a run.

  Args:
    config: of the run.
    name: 'test' or 'holdout'.
  """
  seed = config.seed if config.data.seed is None else config.data.seed
  split = getattr(_dataset(config.data.to_json(), seed), name)
  return Images(data.center(split.images(np.arange(len(split))),
                            config.data.image_size), split.labels)


@functools.cache  # seeds of a row have the same
def _dataset(config_data, seed):
  """Returns the `Dataset` of a config, given as JSON."""
  return data.load(config_dict.ConfigDict(json.loads(config_data)), seed=seed)
