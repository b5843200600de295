"""The architecture strings of Vision Longformer's authors, and the models."""

import re

# A field of a stage: its letter, and the value if it is absent.
_DEFAULTS = dict(l=None, h=3, d=192, n=1, s=1, g=1, p=2, f=7, a=1)
_LEAST = dict(l=1, h=1, d=1, n=1, s=0, g=0, p=1, f=1, a=0)


def parse(arch):
  """Reads an architecture, e.g. 'l1,h1,d48,n1,s1,g1,p4,f7_l2,h3,d96'.

  Args:
    arch: stages joined by '_', with comma-separated fields: l number of the
      stage, h heads, d width, n encoders, s 1 for local and 0 for full
      attention, g global tokens, p patch size, f window, a 1 for absolute
      positions and 0 for relative biases. As in the authors' code, attention is
      full in all stages behind one with s0.

  Returns:
    Attributes of `ViL`, for `adavit_jax.create('vil_tiny_224', **parse(arch))`.

  Raises:
    ValueError: if a stage is out of order, or a field is unknown, given twice
      or invalid.
  """
  stages = [_stage(arch, i, text)
            for i, text in enumerate(arch.split('_'), 1)]
  column = lambda field: tuple(stage[field] for stage in stages)
  is_local, windows = True, []
  for stage in stages:
    is_local &= bool(stage['s'])
    windows.append(stage['f'] if is_local else 0)
  return dict(
      widths=column('d'), depths=column('n'), heads=column('h'),
      patch_sizes=column('p'), windows=tuple(windows),
      num_globals=column('g'), relative=tuple(not a for a in column('a')))


def _stage(arch, number, text):
  fields = dict(_DEFAULTS, l=number)
  seen = set()
  for part in text.split(','):
    match = re.fullmatch(r'([a-z])(\d+)', part)
    name, value = (match[1], int(match[2])) if match else (part, 0)
    if name not in fields or name in seen or value < _LEAST[name] or (
        name in 'sa' and value > 1) or (name == 'l' and value != number):
      raise ValueError(
          f'architecture {arch!r}: {part!r} of stage {number} must be one of '
          f'the letters {",".join(fields)} and a number, each letter once; s '
          f'and a are 0 or 1, and l counts the stages')
    seen.add(name)
    fields[name] = value
  return fields


def _imagenet(widths, depths, heads, *, image_size=224, windows=(7, 7),
              relative=False):
  return dict(
      image_size=image_size, num_classes=1000, widths=widths, depths=depths,
      heads=heads, patch_sizes=(4, 2, 2, 2), windows=(*windows, 0, 0),
      num_globals=(1, 1, 1, 0), relative=(relative,) * 4)


_SIZES = dict(
    tiny=((48, 96, 192, 384), (1, 1, 9, 1), (1, 3, 3, 6)),
    small=((96, 192, 384, 768), (1, 2, 8, 1), (3, 3, 6, 12)),
    medium_deep=((96, 192, 384, 768), (1, 4, 16, 1), (3, 3, 6, 12)),
    medium_wide=((192, 384, 512, 768), (1, 2, 8, 1), (3, 6, 8, 12)),
    base_deep=((96, 192, 384, 768), (1, 8, 24, 1), (3, 3, 6, 12)),
    base_wide=((192, 384, 768, 1024), (1, 2, 8, 1), (3, 6, 12, 16)))

MODELS = {
    'vil_cifar_32': dict(
        image_size=32, num_classes=10,
        **parse('l1,h1,d32,g1,p2,f4_l2,h2,d64,n3,s0,g1_l3,h4,d128,n4,g0')),
    **{f'vil_{name}_224': _imagenet(*size) for name, size in _SIZES.items()},
    # With relative biases instead of absolute positions.
    **{f'vil_{name}_rpb_224': _imagenet(*_SIZES[name], relative=True)
       for name in ('tiny', 'small', 'medium_deep')},
    **{f'vil_{name}_384': _imagenet(
        *_SIZES[name], image_size=384, windows=(8, 12))
       for name in ('medium_deep', 'medium_wide', 'base_deep', 'base_wide')},
}
