"""The settings of a classifier as JSON, for the card of a file."""

import numpy as np

from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.promise import promises


def as_dict(clf):
  """Returns `clf.settings` as a JSON-serializable dict."""
  return {name: _plain(value) for name, value in clf.settings.items()}


def restore(clf, fields, path):
  """Sets what `as_dict` returned; raises a ValueError that names the path."""
  try:
    _restore(clf, fields)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is damaged: its settings {fields} cannot be set '
                     f'({type(error).__name__}: {error})') from error


def _restore(clf, fields):
  for name, value in fields.items():
    if name == 'promise':
      value = promises.Promise.from_dict(value)
    elif name == 'actions' and value is not None:
      value = (fixed.Stochastic if 'final' in value else Actions)(**value)
    setattr(clf, name, value)


def _plain(value):
  if isinstance(value, promises.Promise):
    return value.as_dict()
  if isinstance(value, tuple):  # `Actions` or `Stochastic`
    return {k: _plain(v) for k, v in value._asdict().items()}
  return None if value is None else np.asarray(value, np.float64).tolist()
