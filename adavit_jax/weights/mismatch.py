"""Checks that a file or parameters fit a model; reports all differences."""

import re

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from adavit_jax.weights import native


def check_params(model, params):
  """Raises a ValueError unless `params` are parameter groups of `model`."""
  want = {t.name: t.shape for t in native.FORMAT.tensors(model)}
  groups = {name: params[name] for name in native.GROUPS if name in params}
  got = {name: np.shape(x) for name, x in
         traverse_util.flatten_dict(groups, sep='/').items()}
  wrong = [f'{name}: {got.get(name)} instead of {want.get(name)}'
           for name in sorted({*want, *got}) if got.get(name) != want.get(name)]
  if wrong:
    raise ValueError(f'params do not fit the model: {"; ".join(wrong)}')


def check(model, path, fmt, wanted, arrays):
  """Checks that a file holds exactly the tensors of a model.

  Args:
    model: a `Backbone`.
    path: path of the file, for the message.
    fmt: `layout.Format` of the file.
    wanted: list of `layout.Tensor`.
    arrays: arrays of the file by name.

  Raises:
    ValueError: if tensors are missing, unknown, of the wrong shape or not
      floating-point; lists all of them with their shapes.
  """
  shapes = {t.name: t.shape for t in wanted}
  common = [name for name in shapes if name in arrays]
  text = lambda shape: f'[{", ".join(map(str, shape))}]'
  lines = {
      'missing in the file': [
          (name, text(shape)) for name, shape in shapes.items()
          if name not in arrays],
      'in the file, but not in the model': [
          (name, text(x.shape)) for name, x in arrays.items()
          if name not in shapes],
      'of the wrong shape': [
          (name, f'{text(arrays[name].shape)} in the file, '
           f'{text(shapes[name])} in the model')
          for name in common if arrays[name].shape != shapes[name]],
      'not floating-point': [
          (name, str(arrays[name].dtype)) for name in common
          if not jnp.issubdtype(arrays[name].dtype, jnp.floating)],
  }
  if any(lines.values()):
    message = [f'{path} ({fmt.title} layout) does not fit the model.'
               f'{_advice(model, fmt, wanted, arrays)}']
    for title, tensors in lines.items():
      if tensors:
        message += [f'{title}:', *_by_block(tensors, fmt.block)]
    raise ValueError('\n  '.join(message))


def check_values(model, path, wanted, arrays):
  """Checks that a file's values are numbers, in float32 and the compute dtype.

  Args:
    model: a `Backbone`.
    path: path of the file, for the message.
    wanted: list of `layout.Tensor`.
    arrays: arrays of the file by name, which fit the model.

  Raises:
    ValueError: if any is NaN, infinite or too large; names the first tensors
      and counts them.
  """
  wrong = []
  largest = float(jnp.finfo(model.dtype).max)
  for t in wanted:
    with np.errstate(over='ignore'):  # float64 may be too large
      x = np.asarray(arrays[t.name], np.float32)
    # Statistics of batches stay in float32.
    limit = largest if t.group == 'backbone' else np.finfo(np.float32).max
    if not (np.abs(x) <= limit).all():
      wrong.append(t.name)
  if wrong:
    few = ', '.join(wrong[:5]) + ', ...' * (len(wrong) > 5)
    raise ValueError(
        f'{path} holds NaN, infinite values or such that overflow '
        f'{jnp.dtype(model.dtype)}, in {len(wrong)} of {len(wanted)} tensors '
        f'({few}): its training diverged or half precision overflowed; give an '
        f'earlier checkpoint, or one of float32 and dtype=float32')


def _advice(model, fmt, wanted, arrays):
  """A sentence with the model attributes that the file contradicts, or ''."""
  sizes = {} if fmt.sizes is None else fmt.sizes(fmt, wanted, arrays)
  sizes = {k: v for k, v in sizes.items() if v != getattr(model, k)}
  advice = ''
  if 'depth' in sizes and (lacks := _of_any_depth(fmt, wanted, arrays)):
    del sizes['depth']
    advice = (f' The file is incomplete: it lacks {lacks[0]}, which a model of '
              f'any depth has. If it is a part of a checkpoint in several '
              f'files, put all of them and their index.json together.')
  if sizes:
    values = [f'{k}={v} (not {getattr(model, k)})' for k, v in sizes.items()]
    advice += (f' The file is of a model with {", ".join(values)}: create the '
               f'model with these values.')
  return advice


def _of_any_depth(fmt, wanted, arrays):
  """Missing tensors of no encoder, or of encoders that the file has in part."""
  if not fmt.block:
    return []
  block = lambda name: m[1] if (m := re.match(fmt.block, name)) else None
  there = {None, *map(block, arrays)}
  names = {t.name for t in wanted}
  if any(block(name) is None for name in arrays if name not in names):
    return []  # another model rather than a part of this one
  return [t.name for t in wanted
          if t.name not in arrays and block(t.name) in there]


def _by_block(tensors, block):
  """Merges (name, text) lines of all encoders: 'blocks.{0,1}.norm1.bias [4]'.
  """
  lines = {}
  for name, text in tensors:
    m = re.match(block, name) if block else None
    start, stop = m.span(1) if m else (0, 0)
    key = (name[:start], name[stop:], text)
    lines.setdefault(key, []).append(m[1] if m else '')
  for (before, after, text), numbers in lines.items():
    number = numbers[0]
    if len(numbers) > 1:
      number = f'{{{",".join(numbers)}}}'
    yield f'  {before}{number}{after} {text}'
