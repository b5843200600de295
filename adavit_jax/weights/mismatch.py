"""Says in one message why a file and a model do not fit."""

import re

import jax.numpy as jnp

from adavit_jax import models

# Key in the metadata of the files that `save` writes: the tensors have the same
# shapes whatever the number of heads.
NUM_HEADS = 'adavit_jax.num_heads'


def check_model(model):
  """Raises a ValueError unless other libraries have such a model."""
  if not isinstance(model, models.ViT):
    raise ValueError(f'{type(model).__name__}: only a ViT or DeiT has a layout '
                     f'of other libraries')
  if model.stem != 'patch':
    raise ValueError(f"stem={model.stem!r}: other libraries' models have "
                     f"stem='patch'")


def check_num_heads(model, checkpoint):
  """Raises a ValueError if a `files.Checkpoint` says it has other heads."""
  found = checkpoint.metadata.get(NUM_HEADS, str(model.num_heads))
  if found != str(model.num_heads):
    raise ValueError(f'{checkpoint.path} is of a model with num_heads={found} '
                     f'(not {model.num_heads}): create that one')


def check(model, path, fmt, wanted, arrays):
  """Checks that a file holds exactly what a model needs.

  Args:
    model: `ViT`.
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
  blocks = {m[1] for m in (re.match(fmt.block, name) for name in arrays) if m}
  found = {'depth': len(blocks)}
  for t in wanted:
    if t.leaf == ('patch_embed', 'proj', 'kernel') and t.name in arrays:
      shape = arrays[t.name].shape
      if len(shape) == 4:
        p, _, c, d = (shape[i] for i in t.order)
        found.update(patch_size=p, channels=c, width=d)
  wrong = [f'{key}={value} (not {getattr(model, key)})'
           for key, value in found.items() if value != getattr(model, key)]
  if not wrong:
    return ''
  return f' The file is of a model with {", ".join(wrong)}: create that one.'


def _by_block(found, block):
  """One line for the same tensor of all encoders: 'blocks.{0-11}.norm1...'."""
  lines = {}
  for name, what in found:
    m = re.match(block, name)
    start, stop = m.span(1) if m else (0, 0)
    key = (name[:start], name[stop:], what)
    lines.setdefault(key, []).append(m[1] if m else '')
  for (before, after, what), numbers in lines.items():
    number = numbers[0]
    if len(numbers) > 1:
      number = f'{{{",".join(numbers)}}}'
    yield f'  {before}{number}{after} {what}'
