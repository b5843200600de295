"""Short `repr`s of the library's objects, for interpreters and notebooks.

They trace nothing and compute nothing on a device.
"""

import math

import jax
import numpy as np


def macs(num):
  """Formats MACs with a unit prefix: '1.26 GMACs'."""
  for unit, scale in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if num >= scale:
      return f'{num / scale:.2f} {unit}MACs'
  return f'{num:.0f} MACs'


def num_params(params):
  """Counts the parameters in a tree of arrays: '5,717,416 parameters'."""
  num = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  return f'{num:,} parameters'


def array(x):
  """Formats an array as dtype and shape, 'float32[4,10]'; others by `repr`."""
  if hasattr(x, 'dtype') and hasattr(x, 'shape'):
    return f'{x.dtype}[{",".join(map(str, x.shape))}]'
  return repr(x)


def values(x):
  """Formats a NumPy vector's values, eliding long ones; others by `array`."""
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
  """Formats the MACs of one image, or the mean over [B]; others by `array`."""
  if not isinstance(x, (np.ndarray, np.generic)) or not x.size:
    return array(x)
  return f'{macs(x.mean())}{" on average" if x.ndim else ""}'


def kept(actions):
  """Formats NumPy `Actions`: '52% of 14 layers'; others by `array`."""
  if all(isinstance(x, np.ndarray) for x in actions):
    keep = np.concatenate(actions, axis=-1)
    if keep.size:
      return f'{keep.mean():.0%} of {keep.shape[-1]} layers'
  return f'({", ".join(map(array, actions))})'


def record(x, **formatters):
  """Formats a NamedTuple, each field by its formatter, by default `array`."""
  text = ', '.join(f'{name}={formatters.get(name, array)(value)}'
                   for name, value in x._asdict().items())
  return f'{type(x).__name__}({text})'


def classifier(clf, max_batch_size, lines):
  """Formats a classifier: its model, images and parameters, then `lines`."""
  model = clf.system.model
  params = {k: v for k, v in clf.params.items() if k != 'threshold'}
  side = model.image_size
  outputs = (f'{model.num_classes} classes' if clf.system.target is None
             else clf.system.target.unit)
  return '\n  '.join([
      f'{type(clf).__name__} of {clf.system.config.model.name}, '
      f'{num_params(params)}',
      f'images: uint8 [B, {side}, {side}, {model.channels}] to {outputs}, at '
      f'most {max_batch_size} at once',
      *lines])
