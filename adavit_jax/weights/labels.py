"""Compares the classes that a file names with those of the data.

A head that is kept has the file's order of classes. Folders are sorted by name
or number, so that as many classes may be other ones at every place.
"""

import json
import re

from absl import logging

from adavit_jax.weights import config_json

_NAMES = ('label_names', 'labels', 'class_names', 'classes')  # lists
_TO_NAME = ('id2label', 'idx_to_class')  # {index: name}
_TO_INDEX = ('label2id', 'class_to_idx')  # {name: index}
_NAMELESS = re.compile(r'LABEL_\d+')  # Hugging Face's names of no names


def stated(checkpoint):
  """The names of a file's classes, in the order of its head.

  Args:
    checkpoint: `files.Checkpoint`.

  Returns:
    {where they are stated: list of names}, {} if they are not; several
    descriptions of the same classes are several entries.

  Raises:
    ValueError: if the config.json beside the file cannot be read.
  """
  found = {}
  config = config_json.beside(checkpoint.path)
  if config is not None:
    for fields in (config.fields, config.fields.get('pretrained_cfg')):
      if isinstance(fields, dict):
        _add(found, fields, config.path.name)
  fields = {}
  for key, value in checkpoint.metadata.items():
    if key in (*_NAMES, *_TO_NAME, *_TO_INDEX):
      try:
        fields[key] = json.loads(value)
      except ValueError:
        logging.warning('%s: %s in its metadata is no JSON and not compared '
                        'with the classes.', checkpoint.path, key)
  _add(found, fields, 'its metadata')
  return found


def _add(found, fields, where):
  """Adds the names in fields to a dict."""
  texts = {key: fields[key] for key in _NAMES
           if isinstance(fields.get(key), list)}
  for key in _TO_NAME:
    if isinstance(fields.get(key), dict):
      texts[key] = _sorted(fields[key].items())
  for key in _TO_INDEX:
    if isinstance(fields.get(key), dict):
      texts[key] = _sorted((i, name) for name, i in fields[key].items())
  described = fields.get('label_descriptions')
  names = texts.get('label_names')
  if isinstance(described, dict) and names:
    texts['label_descriptions'] = [described.get(name) for name in names]
  elif isinstance(described, list):
    texts['label_descriptions'] = described
  for key, names in texts.items():
    if names and not all(_NAMELESS.fullmatch(str(name)) for name in names):
      found[f'{key} of {where}'] = list(map(str, names))


def _sorted(pairs):
  """Names by index, [] unless the indices are 0, 1, ..."""
  names = {str(i): name for i, name in pairs}
  return [names.get(str(i)) for i in range(len(names))] if all(
      str(i) in names for i in range(len(names))) else []


def order(checkpoint, names):
  """Compares the order of a head that is kept with the data's.

  Args:
    checkpoint: `files.Checkpoint`.
    names: K names of the classes of the data.

  Returns:
    (index in the file's order of each class of the data, where the file states
    its order), if the same names are in another order. (None, description) if
    some names are the same and at other places. Else (None, ''); if all names
    are others, after a warning.
  """
  found = _known(checkpoint, len(names))
  ours = _plain(names)
  alike = [(where, theirs) for where, theirs in found
           if sorted(theirs) == sorted(ours)]
  if any(theirs == ours for _, theirs in alike) or not found:
    return None, ''
  if alike and len({*ours}) == len(ours):
    where, theirs = alike[0]
    return [theirs.index(name) for name in ours], where
  for where, theirs in found:
    for i, name in enumerate(ours):
      if name in theirs and theirs[i] != name:
        return None, (f'names class {theirs.index(name)} {names[i]!r} ({where})'
                      f', which is class {i} of the data')
  where, theirs = found[0]
  i = next(i for i, name in enumerate(ours) if theirs[i] != name)
  logging.warning(
      '%s: %s names class %d %r, and the data %r. The head is kept, since the '
      'number of classes is the same; if these are other classes, train a '
      'dense phase first.', checkpoint.path, where, i, theirs[i], names[i])
  return None, ''


def _known(checkpoint, num):
  """List of (where, plain names) of a file that names as many classes."""
  found = []
  for where, names in stated(checkpoint).items():
    if len(names) == num:
      # 'tench, Tinca tinca' is Hugging Face's name of the class 'tench'.
      first = [name.split(',')[0] for name in names]
      found += [(where, _plain(x)) for x in (names, first)]
    else:
      logging.warning(
          '%s: %s names %d classes and the head has %d: it is not compared '
          'with the classes of the data.', checkpoint.path, where, len(names),
          num)
  return found


def _plain(names):
  """Names without case and punctuation, where that leaves them different."""
  plain = [' '.join(re.findall(r'[^\W_]+', name.casefold())) for name in names]
  return plain if len({*plain}) == len({*names}) else list(names)
