"""PyTorch's files: which of their dictionaries is read, and what they hold.

Nothing here executes code of a file: `objects` only scans the opcodes of its
pickle.
"""

import json
import pickletools
import re
import zipfile

from absl import logging

SUFFIXES = ('.pth', '.pt', '.bin')
# Keys of the weights in training checkpoints, in the order of preference.
_WEIGHTS = ('model', 'state_dict', 'model_state_dict', 'net')
# Keys of the classes' names, which `labels` compares.
_LABELS = ('class_to_idx', 'idx_to_class', 'id2label', 'class_names', 'classes')
# What torch's own reader accepts: modules, and names of Python's own modules.
_MODULES = ('torch', 'torch._utils', 'torch._tensor', 'torch.storage',
            'torch.nn.parameter', 'torch.serialization', '_codecs')
_NAMES = ('set', 'frozenset', 'list', 'dict', 'tuple', 'bytearray', 'int',
          'float', 'bool', 'complex', 'slice', 'range', 'OrderedDict',
          'Counter')
_MAGIC = 0x1950a86a20f9469cfc6c  # the first pickle of files before torch 1.6


def load(path):
  """Reads a file with torch, which builds tensors and plain containers only."""
  import torch
  return torch.load(path, map_location='cpu', weights_only=True)


def arrays(path, content):
  """The weights in the content of a file.

  Args:
    path: path of the file, for messages.
    content: see `load`.

  Returns:
    (arrays by name; half precision becomes float32), (metadata with the names
    of classes that the file has, as JSON).

  Raises:
    ValueError: if it is not clear which dictionary holds the weights, or that
      one holds more than dense tensors.
  """
  import torch
  metadata = {}
  if isinstance(content, dict):
    metadata = {key: json.dumps(content[key], default=str) for key in _LABELS
                if isinstance(content.get(key), (dict, list, tuple))}
  tensors = _weights(path, content, torch.Tensor)
  others = [f'{name} ({_kind(x)})' for name, x in tensors.items() if not (
      isinstance(x, torch.Tensor) and x.layout == torch.strided
      and not x.is_quantized)]
  if others:
    raise ValueError(f'{path}: the weights hold more than dense tensors '
                     f'({_few(others)}); save them without these entries')
  numpy = lambda x: (x.float() if x.is_floating_point() else x).numpy()
  return {str(name): numpy(x.detach()) for name, x in tensors.items()}, metadata


def _weights(path, content, tensor):
  """The dictionary of tensors in the content of a file."""
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds one {_kind(content)} and no dictionary of '
                     f"tensors; save the model's state_dict()")
  def is_set(x):
    return isinstance(x, dict) and any(
        isinstance(value, tensor) for value in x.values())
  while not is_set(content):
    # Settings may stand under such a key, and the weights under another one.
    dicts = [key for key in _WEIGHTS if isinstance(content.get(key), dict)]
    key = next((key for key in dicts if is_set(content[key])),
               dicts[0] if dicts else None)
    sets = [key for key, x in content.items() if is_set(x)]
    if key is None:
      if len(sets) != 1:
        keys = [f'{key} ({_kind(x)})' for key, x in content.items()]
        raise ValueError(
            f'{path} holds {", ".join(keys) or "nothing"}, and none of '
            f'{", ".join(_WEIGHTS)}, which would be the weights; save them '
            f'alone, e.g. torch.save(checkpoint'
            f'[{str(sets[-1] if sets else "KEY")!r}], "weights.pth")')
      key, = sets
      logging.info('%s: %r is read, the only dictionary of tensors.', path, key)
    elif set(sets) - {key}:
      logging.warning(
          '%s holds several sets of weights (%s): %r is read. For another one, '
          'save it alone, e.g. torch.save(checkpoint[%r], "weights.pth").',
          path, ', '.join(map(str, sets)), key,
          next(name for name in sets if name != key))
    content = content[key]
  return content


def _kind(x):
  if isinstance(x, dict):
    return f'a dict of {len(x)}'
  return type(x).__name__


def _few(names):
  more = f', ... {len(names)} in all' if len(names) > 5 else ''
  return ', '.join(names[:5]) + more


def objects_message(path):
  """A sentence that names a file's Python objects; '' if none are found."""
  found, strings = objects(path)
  if not found:
    return ''
  whole = any(name.startswith(('torch.nn.modules.', '__torch__.'))
              for name in found)
  key = next((key for key in _WEIGHTS if key in strings), None)
  what = ('model.state_dict()' if whole else
          f'checkpoint[{key!r}]' if key else 'its state_dict')
  return (f'{path} holds Python objects beside tensors ({_few(found)}), which '
          f'are not read, since they may execute code; where you trust the '
          f'file, save the tensors alone: torch.save({what}, "weights.pth")')


def objects(path):
  """Scans the pickle of a file for objects that are no tensors or containers.

  Returns:
    (names of their classes or functions, in order), (the pickle's strings).
    Both are empty for a file that is not torch's.
  """
  found, strings = {}, []
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist()
                 if name.split('/')[-1] == 'data.pkl']
        for name in names:
          with file.open(name) as stream:
            _scan(stream, found, strings)
    else:
      with open(path, 'rb') as stream:
        first = [arg for _, arg, _ in pickletools.genops(stream)]
        if _MAGIC in first:
          for _ in range(3):  # version, system and content
            _scan(stream, found, strings)
  except Exception:  # A damaged file; its reader says so.
    return (), ()
  return tuple(found), tuple(strings)


def _scan(stream, found, strings):
  """Adds the objects and strings of one pickle to a dict and a list."""
  memo, recent = {}, []
  for op, arg, _ in pickletools.genops(stream):
    name = op.name
    if name in ('GLOBAL', 'INST'):
      _add(found, *arg.split(' ', 1))
    elif name == 'STACK_GLOBAL':
      _add(found, *recent[-2:])
    elif name == 'MEMOIZE':
      memo[len(memo)] = recent[-1] if recent else ''
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
      memo[int(arg)] = recent[-1] if recent else ''
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      recent.append(memo.get(int(arg), ''))
    elif isinstance(arg, str):
      recent.append(arg)
      strings.append(arg)
    else:
      continue
    del recent[:-2]


def _add(found, module, name):
  plain = (name in _NAMES
           if module in ('builtins', '__builtin__', 'collections')
           else module in _MODULES)
  if not plain:
    found[re.sub(r'\s+', '.', f'{module}.{name}')] = None
