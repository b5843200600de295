"""How the library's objects print, in an interpreter or a notebook.

What is printed is short, and nothing is traced or computed on a device for it.
"""

import math

import jax
import numpy as np


def macs(num):
  """MACs in a unit that fits: '1.26 GMACs'."""
  for unit, scale in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if num >= scale:
      return f'{num / scale:.2f} {unit}MACs'
  return f'{num:.0f} MACs'


def num_params(params):
  """Number of parameters in a tree of arrays: '5,717,416 parameters'."""
  num = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  return f'{num:,} parameters'


def array(x):
  """An array's type and shape, 'float32[4,10]'; anything else as it is."""
  if hasattr(x, 'dtype') and hasattr(x, 'shape'):
    return f'{x.dtype}[{",".join(map(str, x.shape))}]'
  return repr(x)


def values(x):
  """The numbers of a NumPy vector, of a long one both ends; else `array`."""
  if not isinstance(x, (np.ndarray, np.generic)) or x.ndim > 1:
    return array(x)
  form = '{:.4g}' if x.dtype.kind == 'f' else '{}'
  if not x.ndim:
    return form.format(x)
  texts = [form.format(value) for value in x]
  if len(texts) > 8:
    texts[3:-3] = ['...']
  return f'[{", ".join(texts)}]'


def mean_macs(x):
  """MACs of one image, or the mean over images [B]; else `array`."""
  if not isinstance(x, (np.ndarray, np.generic)) or not x.size:
    return array(x)
  return f'{macs(x.mean())}{" in the mean" if x.ndim else ""}'


def kept(actions):
  """`Actions` of NumPy arrays as a share: '0.52 of 14 layers'; else `array`s.
  """
  if all(isinstance(x, np.ndarray) for x in actions):
    keep = np.concatenate(actions, axis=-1)
    if keep.size:
      return f'{keep.mean():.2f} of {keep.shape[-1]} layers'
  return f'({", ".join(map(array, actions))})'


def record(x, **how):
  """A NamedTuple, each field by the function given for it, or by `array`."""
  text = ', '.join(f'{name}={how.get(name, array)(value)}'
                   for name, value in x._asdict().items())
  return f'{type(x).__name__}({text})'


def classifier(clf, max_batch_size, lines):
  """A classifier in a few lines: its model, images and params, then `lines`."""
  model = clf.system.model
  side = model.image_size
  outputs = (f'{model.num_classes} classes' if clf.system.target is None
             else clf.system.target.unit)
  return '\n  '.join([
      f'{type(clf).__name__} of {clf.system.config.model.name}, '
      f'{num_params(clf.params)}',
      f'images: uint8 [B, {side}, {side}, {model.channels}] to {outputs}, at '
      f'most {max_batch_size} at once',
      *lines])
