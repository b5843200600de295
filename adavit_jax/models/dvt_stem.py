"""The stems of DVT's transformers, which cut one image into different grids."""

import numbers

from adavit_jax.models import t2t
from adavit_jax.models.stem import ConvStem
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.stem import stem_macs

STEMS = ('patch', 'conv', 't2t')


def patches(m, index):
  """Patches that cover the image, with zeros around it where they exceed it.

  At 224 pixels these are the kernels of DVT's code: 32 for 7 x 7 tokens, 23
  with a padding of 3 for 10 x 10, and 16 for 14 x 14.

  Args:
    m: `DVT`.
    index: index of the transformer.

  Returns:
    (side, padding) in pixels.
  """
  side = -(-m.image_size // m.grids[index])
  return side, -(-(side * m.grids[index] - m.image_size) // 2)


def make(m, index):
  """The stem of a transformer, named 'patch_embed_{index}'."""
  side, padding = patches(m, index)
  name = f'patch_embed_{index}'
  if m.stem == 't2t':
    return t2t.T2TStem(m.width, m.windows[index], m.dtype, name=name)
  if m.stem == 'conv':
    return ConvStem(m.width, side, m.dtype, name=name)
  return PatchStem(m.width, side, m.dtype, padding, name=name)


def macs(m, index):
  """MACs of the stem of a transformer for one image."""
  if m.stem == 't2t':
    return t2t.macs(m.image_size, m.windows[index], m.channels, m.width)
  side, _ = patches(m, index)
  # The patches as an image of their own, with the zeros around.
  return stem_macs(m.stem, side * m.grids[index], side, m.channels, m.width)


def check(m):
  """Raises a ValueError if a stem does not give its grid."""
  grids, s = m.grids, m.image_size
  if m.stem not in STEMS:
    raise ValueError(f'stem={m.stem!r} must be one of {STEMS}')
  if m.stem == 't2t':
    one_each = isinstance(m.windows, tuple) and len(m.windows) == len(grids)
    if not one_each or not all(map(_is_window, m.windows)):
      raise ValueError(f"windows={m.windows!r} must have one (size, stride, "
                       f"padding) for each of grids={grids} with stem='t2t': "
                       f'integers, with stride >= 1 and size > padding >= 0')
    for n, window in zip(grids, m.windows):
      sides = t2t.sides(s, window)
      if sides[-1] != n:
        raise ValueError(f'windows={m.windows}: {window} gives grids of '
                         f'{sides} for image_size={s}, not {n} in the end')
    return
  if m.windows:
    raise ValueError(f"windows={m.windows} are for stem='t2t', not for "
                     f'stem={m.stem!r}; leave them out')
  for i, n in enumerate(grids):
    side, padding = patches(m, i)
    if padding >= side:
      raise ValueError(f'grids={grids}: {n} patches of {side} pixels would '
                       f'exceed image_size={s} by a patch on each side')
    if m.stem == 'conv' and (padding or side < 2 or side & (side - 1)):
      raise ValueError(f"grids={grids}: stem='conv' needs patches whose side "
                       f'is a power of two, not image_size={s} over {n}')


def _is_window(window):
  """Whether it is (size, stride, padding); without windows of padding alone."""
  if not isinstance(window, tuple) or len(window) != 3 or not all(
      isinstance(n, numbers.Integral) for n in window):
    return False
  size, stride, padding = window
  return stride >= 1 and size > padding >= 0
