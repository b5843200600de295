"""Model names and what they stand for."""

import dataclasses
import difflib

import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import plan
from adavit_jax.models import ravit
from adavit_jax.models import vit

_DTYPES = ('float32', 'bfloat16', 'float16')
_MODELS = {}  # name: (class, attributes)


def register(family, models):
  """Adds the models of a backbone.

  Args:
    family: a subclass of `Backbone`.
    models: {name: dict of attributes}.
  """
  _MODELS.update({name: (family, values) for name, values in models.items()})


register(vit.ViT, vit.MODELS)
register(ravit.RAViT, ravit.MODELS)


def names():
  """Returns the sorted list of model names."""
  return sorted(_MODELS)


def fields():
  """{name: type} of the attributes that a config may set, of all families."""
  families = [backbone.Backbone, *{family: None for family, _ in
                                   _MODELS.values()}]
  own = ('num_classes', 'channels', 'weights', 'dtype')
  return {name: kind for family in families
          for name, kind in _fields(family).items() if name not in own}


def _fields(family):
  return {f.name: getattr(f.type, '__origin__', f.type)
          for f in dataclasses.fields(family)
          if f.name not in ('parent', 'name')}


def create(name, **overrides):
  """Creates the model `name`, with any of its attributes overridden.

  Args:
    name: one of `names()`.
    **overrides: attributes of its `Backbone`; `dtype` may be a string.

  Returns:
    A `Backbone`; `adavit_jax.init_params(model, key)` makes its parameters.

  Raises:
    ValueError: for an unknown name or attribute, or values that do not fit
      together.
  """
  if name not in _MODELS:
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {names()}'
    raise ValueError(f'unknown model {name!r}; {hint}')
  family, values = _MODELS[name]
  known = _fields(family)
  for key in overrides:
    if key not in known:
      raise ValueError(
          f'unknown model attribute {key!r}; known: {sorted(known)}')
  values = values | overrides
  if 'dtype' in values:
    values['dtype'] = _dtype(values['dtype'])
  # JSON has no tuples, and modules are hashed.
  model = family(**{k: _tuples(v) for k, v in values.items()})
  model.check()
  plan.check(model)
  return model


def _tuples(value):
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def _dtype(value):
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = None
  if str(dtype) not in _DTYPES:
    raise ValueError(f'dtype={value!r} must be one of {_DTYPES}')
  return dtype
