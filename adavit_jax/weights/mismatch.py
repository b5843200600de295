"""Says in one message why a file or parameters and a model do not fit."""

import re

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from adavit_jax.weights import own


def check_params(model, params):
  """Raises a ValueError unless `params` are groups of parameters of `model`."""
  want = {t.name: t.shape for t in own.FORMAT.tensors(model)}
  groups = {name: params[name] for name in own.GROUPS if name in params}
  got = {name: np.shape(x) for name, x in
         traverse_util.flatten_dict(groups, sep='/').items()}
  wrong = [f'{name}: {got.get(name)} instead of {want.get(name)}'
           for name in sorted({*want, *got}) if got.get(name) != want.get(name)]
  if wrong:
    raise ValueError(f'these are not the parameters of the model: '
                     f'{"; ".join(wrong)}')


def check(model, path, fmt, wanted, arrays):
  """Checks that a file holds exactly what a model needs.

  Args:
    model: a `Backbone`.
    path: of the file, for the message.
    fmt: `layout.Format` of the file.
    wanted: list of `layout.Tensor`.
    arrays: the file's arrays by name.

  Raises:
    ValueError: listing every tensor that is missing, not known, of another
      shape or not of floating point, with its shape.
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
      'of another shape': [
          (name, f'{text(arrays[name].shape)} in the file, '
           f'{text(shapes[name])} in the model')
          for name in common if arrays[name].shape != shapes[name]],
      'not of floating point': [
          (name, str(arrays[name].dtype)) for name in common
          if not jnp.issubdtype(arrays[name].dtype, jnp.floating)],
  }
  if any(lines.values()):
    message = [f'{path} ({fmt.title} layout) does not fit the model.'
               f'{_advice(model, fmt, wanted, arrays)}']
    for title, found in lines.items():
      if found:
        message += [f'{title}:', *_by_block(found, fmt.block)]
    raise ValueError('\n  '.join(message))


def _advice(model, fmt, wanted, arrays):
  """Attributes of the model that the file contradicts, as a sentence."""
  found = {} if fmt.sizes is None else fmt.sizes(fmt, wanted, arrays)
  wrong = [f'{key}={value} (not {getattr(model, key)})'
           for key, value in found.items() if value != getattr(model, key)]
  if not wrong:
    return ''
  return f' The file is of a model with {", ".join(wrong)}: create that one.'


def _by_block(found, block):
  """One line for the same tensor of all encoders: 'blocks.{0-11}.norm1...'."""
  lines = {}
  for name, what in found:
    m = re.match(block, name) if block else None
    start, stop = m.span(1) if m else (0, 0)
    key = (name[:start], name[stop:], what)
    lines.setdefault(key, []).append(m[1] if m else '')
  for (before, after, what), numbers in lines.items():
    number = numbers[0]
    if len(numbers) > 1:
      number = f'{{{",".join(numbers)}}}'
    yield f'  {before}{number}{after} {what}'
