"""Model attributes in the metadata of files written by `save`.

Some attributes cannot be inferred from tensor shapes. A wrong num_heads, for
example, would fit every tensor and give wrong logits.
"""

import dataclasses
import json
import numbers

import numpy as np

from adavit_jax import models

_PREFIX = 'adavit_jax.'

# Shown by tensors; of the image size; of training alone.
_LEFT_OUT = {'mlp_ratio', 'distillation', 'scales', 'random_shift'}


def of(model):
  """Returns the numbers and flags that the model's class adds to `Backbone`.

  Attributes of `Backbone` itself, and those in its `unsaved`, are left out: the
  parameters can be adapted to them or do not depend on them.

  Returns:
    {metadata key: JSON}.
  """
  general = {field.name for field in dataclasses.fields(models.Backbone)}
  values = {field.name: getattr(model, field.name)
            for field in dataclasses.fields(model)
            if field.name not in general.union(model.unsaved, _LEFT_OUT)}
  return {_PREFIX + name: json.dumps(value, default=_plain)
          for name, value in values.items() if _is_number(value)}


def _is_number(value):
  if isinstance(value, tuple):
    return all(map(_is_number, value))
  return isinstance(value, (numbers.Real, np.bool_))


def _plain(value):
  return value.item()  # of a NumPy number


def is_own(checkpoint):
  """Whether `save` wrote a `files.Checkpoint`."""
  return any(key.startswith(_PREFIX) for key in checkpoint.metadata)


def differing(metadata, model):
  """Returns {name: (JSON in the metadata, JSON of the model)} that differ."""
  return {key.removeprefix(_PREFIX): (metadata[key], value)
          for key, value in of(model).items()
          if _parsed(metadata.get(key, value)) != _parsed(value)}


def _parsed(text):
  """Returns the JSON value, so that 2 and 2.0 are equal; else the text."""
  try:
    return json.loads(text)
  except ValueError:  # of a damaged file
    return text


def check(model, checkpoint):
  """Raises a ValueError if a `files.Checkpoint` has other attributes."""
  wrong = [f'{name}={in_file} (not {value})' for name, (in_file, value) in
           differing(checkpoint.metadata, model).items()]
  if wrong:
    raise ValueError(f'{checkpoint.path} is of a model with '
                     f'{", ".join(wrong)}: create the model with these values')
