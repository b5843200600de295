"""Model attributes in the metadata of files written by `save`.

Some attributes cannot be inferred from tensor shapes. A wrong num_heads, for
example, would fit every tensor and give wrong logits.
"""

import dataclasses
import json
import numbers

from adavit_jax import models

_PREFIX = 'adavit_jax.'


def of(model):
  """Returns the integer attributes that the model's class adds to `Backbone`.

  Attributes of `Backbone` itself, and those in its `unsaved`, are left out: the
  parameters can be adapted to them or do not depend on them.

  Returns:
    {metadata key: JSON}.
  """
  general = {field.name for field in dataclasses.fields(models.Backbone)}
  values = {field.name: getattr(model, field.name)
            for field in dataclasses.fields(model)
            if field.name not in general.union(model.unsaved)}
  return {_PREFIX + name: json.dumps(value, default=int)
          for name, value in values.items() if _whole(value)}


def _whole(value):
  if isinstance(value, tuple):
    return all(map(_whole, value))
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check(model, checkpoint):
  """Raises a ValueError if a `files.Checkpoint` has other attributes."""
  wrong = [
      f'{key.removeprefix(_PREFIX)}={in_file} (not {value})'
      for key, value in of(model).items()
      if (in_file := checkpoint.metadata.get(key, value)) != value]
  if wrong:
    raise ValueError(f'{checkpoint.path} is of a model with '
                     f'{", ".join(wrong)}: create the model with these values')
