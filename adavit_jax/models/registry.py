"""Model names and what they stand for."""

import difflib
import math

import jax.numpy as jnp

from adavit_jax.models.vit import ViT

_WIDTHS = {
    'tiny': dict(width=192, num_heads=3),
    'small': dict(width=384, num_heads=6),
    'base': dict(width=768, num_heads=12),
}

_IMAGENET = dict(image_size=224, patch_size=16, depth=12, num_classes=1000)

_MODELS = {
    # Small images: scikit-learn's digits, digit scenes, CIFAR.
    'vit_digits_patch2_8': dict(
        image_size=8, patch_size=2, channels=1, num_classes=10, width=48,
        depth=8, num_heads=2, mlp_ratio=2.0, num_fixed=1),
    'vit_scenes_patch4_16': dict(
        image_size=16, patch_size=4, channels=1, num_classes=10, width=48,
        depth=8, num_heads=2, mlp_ratio=2.0, num_fixed=2),
    'vit_cifar_patch4_32': dict(
        image_size=32, patch_size=4, num_classes=10, width=192, depth=9,
        num_heads=3, mlp_ratio=2.0, num_fixed=2),
    'vit_cifar_conv8_32': dict(
        image_size=32, patch_size=8, num_classes=10, width=128, depth=8,
        num_heads=4, mlp_ratio=2.0, num_fixed=2, stem='conv'),
    **{f'vit_{size}_patch16_224': dict(**_IMAGENET, **widths)
       for size, widths in _WIDTHS.items()},
    **{f'deit_{size}_patch16_224': dict(**_IMAGENET, **widths)
       for size, widths in _WIDTHS.items()},
    **{f'deit_{size}_distilled_patch16_224':
       dict(**_IMAGENET, **widths, distillation=True)
       for size, widths in _WIDTHS.items()},
}


def names():
  """Returns the sorted list of model names."""
  return sorted(_MODELS)


def create(name, **overrides):
  """Creates the model `name`, with any of `ViT`'s attributes overridden.

  Args:
    name: one of `names()`.
    **overrides: attributes of `ViT`; `dtype` may be a string.

  Returns:
    A `ViT` module; `init_params(model, key)` makes its parameters.

  Raises:
    ValueError: for an unknown name or attribute, or values that do not fit
      together.
  """
  if name not in _MODELS:
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {names()}'
    raise ValueError(f'unknown model {name!r}; {hint}')
  fields = {f for f in ViT.__dataclass_fields__ if f not in ('parent', 'name')}
  for key in overrides:
    if key not in fields:
      raise ValueError(
          f'unknown model attribute {key!r}; known: {sorted(fields)}')
  values = {**_MODELS[name], **overrides}
  if 'dtype' in values:
    values['dtype'] = jnp.dtype(values['dtype'])
  model = ViT(**values)
  _check(model)
  return model


def _check(m):
  if m.image_size % m.patch_size:
    raise ValueError(f'patch_size={m.patch_size} does not divide image_size='
                     f'{m.image_size}')
  if m.width % m.num_heads:
    raise ValueError(f'num_heads={m.num_heads} does not divide width={m.width}')
  if m.num_fixed not in (1, 2, 3):
    raise ValueError(f'num_fixed={m.num_fixed} must be 1, 2 or 3')
  if m.num_fixed >= m.depth:
    raise ValueError(f'num_fixed={m.num_fixed} must be smaller than depth='
                     f'{m.depth}: no encoder would be left to adapt')
  if m.stem not in ('patch', 'conv'):
    raise ValueError(f"stem={m.stem!r} must be 'patch' or 'conv'")
  if m.stem == 'conv' and (m.patch_size < 2
                           or not math.log2(m.patch_size).is_integer()):
    raise ValueError(f'the conv stem halves the image: patch_size='
                     f'{m.patch_size} must be a power of two')
