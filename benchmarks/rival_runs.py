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

_NUMBERS = 13  # of a policy's threshold or price that are tried


class Rival(NamedTuple):
  """A run and how it is loaded.

  Attributes:
    label: its name in the table.
    workdir: directory of the run.
    settings: {} for the thresholds that it loads with, else one of row, a row
      of report.json; lost, the share of the held-out images that exits or a
      policy may lose; exit, the index of the exit of all images.
    options: arguments of `adavit_jax.load`.
  """
  label: str
  workdir: str
  settings: dict[str, Any]
  options: dict[str, Any]


def parse(text):
  """Parses LABEL=DIR,KEY=VALUE,...

  Raises:
    ValueError: if it has another form.
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
  if not isinstance(settings.get('lost', 0), (int, float)):
    raise ValueError(f'{text!r}: lost is a share, such as lost=0.01')
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
  if row not in report:
    raise ValueError(f'row={row!r} is not in report.json of {workdir}')
  if clf.system.staged:
    clf.thresholds = report[row]['thresholds']
  else:
    setattr(clf, clf.knob.name, report[row][clf.knob.name])


def _set_exit(clf, index, workdir):
  num = len(clf.system.exits)
  if not clf.system.staged or not 0 <= index < num:
    raise ValueError(f'exit={index} does not fit {workdir}, which has {num} '
                     f'exits, counted from 0')
  clf.thresholds = [confidence.NEVER if i < index else confidence.ALWAYS
                    for i in range(num - 1)]


def _set_lost(clf, lost, workdir):
  """Sets thresholds for held-out images to lose a share.

  Those of exits against the last exit, the number of a policy against all of
  its layers; it is the lowest of `_NUMBERS` if all of them lose more.
  """
  held = images_of(clf.system.config, 'holdout')
  if clf.system.staged:
    found = clf.at_exits(held.images)
    clf.thresholds = cross_validation.losing_at_most(
        found.confidence, clf.system.task.score(found.prediction, held.labels),
        found.macs, lost=lost).thresholds
    return
  if clf.actions is not None:
    raise ValueError(f'lost={lost} is for runs with exits or a policy, but '
                     f'{workdir} has neither; leave it out')
  accuracy = lambda: (clf(held.images).labels == held.labels).mean()
  clf.actions = fixed.all_layers(plan.num_layers(clf.system.model))
  least = accuracy() - lost
  clf.actions = None
  numbers = clf.knob.sweep(_NUMBERS)
  setattr(clf, clf.knob.name, numbers[0])
  for last, number in zip(numbers, numbers[1:]):
    setattr(clf, clf.knob.name, number)
    if accuracy() < least:
      setattr(clf, clf.knob.name, last)
      return


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

  Raises:
    ValueError: if the split has no images.
  """
  seed = config.seed if config.data.seed is None else config.data.seed
  split = getattr(_dataset(config.data.to_json(), seed), name)
  if not len(split):
    raise ValueError(f'the split {name!r} of a run has no images; lost= needs '
                     f'a run with data.holdout')
  return Images(data.centre(split.images(np.arange(len(split))),
                            config.data.image_size), split.labels)


@functools.cache  # seeds of a row have the same
def _dataset(config_data, seed):
  """Returns the `Dataset` of a config, given as JSON."""
  return data.load(config_dict.ConfigDict(json.loads(config_data)), seed=seed)
