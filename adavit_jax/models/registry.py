"""The registry of model names."""

import dataclasses
import difflib
import numbers
import typing

import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import crossvit
from adavit_jax.models import dvt
from adavit_jax.models import evo_deit
from adavit_jax.models import evo_levit
from adavit_jax.models import levit
from adavit_jax.models import plan
from adavit_jax.models import ravit
from adavit_jax.models import shuffle_transformer
from adavit_jax.models import vil
from adavit_jax.models import vil_arch
from adavit_jax.models import vit

# Of more layers, plans would take minutes; no model is that wide.
_LARGEST = 2**16
_DTYPES = ('float32', 'bfloat16', 'float16')
# Types that a config field supports.
_KINDS = (bool, int, float, str, tuple)
# Attributes that are not set by configs, or `config.model` fields with another
# meaning.
_RESERVED = ('num_classes', 'channels', 'weights', 'dtype', 'name', 'parent',
             'unroll', 'remat', 'module')
_MODELS = {}  # name: (class, attributes)


def register(family, models):
  """Registers the models of a backbone.

  Args:
    family: a subclass of `Backbone`.
    models: {name: dict of attributes}.

  Raises:
    ValueError: if an attribute has a type that configs do not support, a
      reserved name, or another type than in other families.
  """
  known = fields()
  for name, kind in _fields(family).items():
    added = name not in backbone.Backbone.__dataclass_fields__
    if added and (name in _RESERVED or kind not in _KINDS):
      raise ValueError(f'{family.__name__}.{name} must have another name, or '
                       f'one of the types {[k.__name__ for k in _KINDS]}')
    if kind is not known.get(name, kind):
      raise ValueError(f'{family.__name__}.{name} is {kind.__name__}, but it '
                       f'is {known[name].__name__} in other models: rename it')
  _MODELS.update({name: (family, values) for name, values in models.items()})


def names():
  """Returns the sorted list of model names."""
  return sorted(_MODELS)


def unsaved(name):
  """Returns the names of attributes that may change after training."""
  return _MODELS[name][0].unsaved


def fields():
  """{name: type} of the attributes that a config may set, of all families."""
  families = [backbone.Backbone, *{family: None for family, _ in
                                   _MODELS.values()}]
  return {name: kind for family in families
          for name, kind in _fields(family).items() if name not in _RESERVED}


def _fields(family):
  """{name: type} of the attributes of one family."""
  hints = typing.get_type_hints(family)
  kinds = {f.name: hints[f.name] for f in dataclasses.fields(family)
           if f.name not in ('parent', 'name')}
  return {name: typing.get_origin(kind) or kind
          for name, kind in kinds.items()}


register(vit.ViT, vit.MODELS)
register(ravit.RAViT, ravit.MODELS)
register(dvt.DVT, dvt.MODELS)
register(levit.LeViT, levit.MODELS)
register(crossvit.CrossViT, crossvit.MODELS)
register(shuffle_transformer.ShuffleTransformer, shuffle_transformer.MODELS)
register(vil.ViL, vil_arch.MODELS)
register(evo_deit.EvoDeiT, evo_deit.MODELS)
register(evo_levit.EvoLeViT, evo_levit.MODELS)


def create(name, **overrides):
  """Creates a model by name.

  Args:
    name: one of `names()`.
    **overrides: attributes of its `Backbone` to override; `dtype` may be a
      string.

  Returns:
    A `Backbone`; `adavit_jax.init_params(model, key)` creates its parameters.

  Raises:
    ValueError: if the name or an attribute is unknown, or values are invalid.
  """
  if name not in _MODELS:
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {names()}'
    raise ValueError(f'unknown model {name!r}; {hint}; for a custom backbone, '
                     f'import the module that registers it, see '
                     f'config.model.module')
  family, values = _MODELS[name]
  known = _fields(family)
  for key in overrides:
    if key not in known:
      raise ValueError(
          f'unknown model attribute {key!r}; known: {sorted(known)}')
    if key not in _RESERVED and not _in_range(overrides[key]):
      raise ValueError(f'{key}={overrides[key]!r} has a number that is not in '
                       f'{-_LARGEST}..{_LARGEST}')
  values = values | overrides
  if 'dtype' in values:
    values['dtype'] = _dtype(values['dtype'])
  # Modules must be hashable, and lists may come from JSON.
  model = family(**{k: _tuples(v) for k, v in values.items()})
  model.check()
  plan.check(model)
  return model


def _in_range(value):
  """Whether all numbers in a value are finite and of a model's size."""
  if isinstance(value, (list, tuple)):
    return all(map(_in_range, value))
  return not isinstance(value, numbers.Real) or abs(value) <= _LARGEST


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
