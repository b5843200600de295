"""What no tensor shows of a model, in the metadata of the files of `save`.

With another number of heads all tensors have the same shapes, and all logits
would be wrong.
"""

import dataclasses
import json
import numbers

from adavit_jax import models

_PREFIX = 'adavit_jax.'


def of(model):
  """The whole numbers among the attributes that its family adds to `Backbone`.

  Left out are the attributes of every `Backbone`: sizes that a file may be
  adapted to, and what its parameters do not depend on.

  Returns:
    {key of the metadata: JSON}.
  """
  general = {field.name for field in dataclasses.fields(models.Backbone)}
  values = {field.name: getattr(model, field.name)
            for field in dataclasses.fields(model) if field.name not in general}
  return {_PREFIX + name: json.dumps(value, default=int)
          for name, value in values.items() if _whole(value)}


def _whole(value):
  if isinstance(value, tuple):
    return all(map(_whole, value))
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check(model, checkpoint):
  """Raises a ValueError if a `files.Checkpoint` names other attributes."""
  wrong = [
      f'{key.removeprefix(_PREFIX)}={found} (not {value})'
      for key, value in of(model).items()
      if (found := checkpoint.metadata.get(key, value)) != value]
  if wrong:
    raise ValueError(f'{checkpoint.path} is of a model with '
                     f'{", ".join(wrong)}: create that one')
