"""Classifiers are pickled as references to the run that they were loaded from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Loaded(NamedTuple):
  """How a classifier was loaded.

  Attributes:
    load: function that loads it, pickled by its name.
    workdir: the run's directory.
    arguments: keyword arguments of `load`.
    step: step of the checkpoint.
  """
  load: Callable
  workdir: str
  arguments: dict[str, Any]
  step: int


def reduce(loaded, settings):
  """Returns what `__reduce__` of a classifier returns.

  Args:
    loaded: `Loaded`, or None.
    settings: {attribute: value}, set in this order after loading.

  Raises:
    TypeError: if it was not loaded from a run.
  """
  if loaded is None:
    raise TypeError('a classifier is pickled as a reference to its run, but '
                    'this one was not made by adavit_jax.load')
  return _load, (loaded, settings)


def _load(loaded, settings):
  clf = loaded.load(loaded.workdir, **loaded.arguments)
  if clf.loaded.step != loaded.step:
    raise ValueError(f'{loaded.workdir} was at step {loaded.step} when the '
                     f'classifier was pickled, and is at {clf.loaded.step} '
                     f'now: load it again')
  for name, value in settings.items():
    setattr(clf, name, value)
  return clf
