"""The config.json that other libraries write beside their weights."""

import json
import pathlib
from typing import Any, NamedTuple

_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


class Config(NamedTuple):
  """What a config.json states.

  Attributes:
    path: path of the file.
    form: 'timm', 'Hugging Face', or '' for a form that is not known.
    fields: its fields. Those of timm's old form, which has the preprocessing at
      the top level, are arranged as in its new one.
  """
  path: pathlib.Path
  form: str
  fields: dict[str, Any]

  def keys(self):
    """The first names of fields, for messages."""
    names = list(map(str, self.fields))
    return ', '.join(names[:8]) + ', ...' * (len(names) > 8) or 'none'


def beside(path):
  """Reads the config.json beside a file of weights.

  Args:
    path: path of the file of weights.

  Returns:
    `Config`, or None if there is none.

  Raises:
    ValueError: if it is not a JSON object.
  """
  path = pathlib.Path(path).parent / 'config.json'
  if not path.is_file():
    return None
  try:
    fields = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is no JSON ({error}): fetch it again, or remove '
                     f'it') from error
  if not isinstance(fields, dict):
    raise ValueError(f'{path} holds a {type(fields).__name__} and not an '
                     f'object with fields: fetch it again, or remove it')
  if 'pretrained_cfg' in fields:
    return Config(path, 'timm', fields)
  if 'architecture' in fields or set(_PREPROCESSING) <= fields.keys():
    return Config(path, 'timm', _from_old_form(fields))
  if {'model_type', 'architectures', 'hidden_size'} & fields.keys():
    return Config(path, 'Hugging Face', fields)
  return Config(path, '', fields)


def _from_old_form(fields):
  """timm's form before 0.9 in its later one, as timm itself arranges it."""
  top = ('architecture', 'num_features', 'model_args')
  rest = {k: v for k, v in fields.items() if k not in top}
  if 'labels' in rest:
    rest['label_names'] = rest.pop('labels')
  top = {k: fields[k] for k in top if k in fields}
  return top | ({'pretrained_cfg': rest} if rest else {})
