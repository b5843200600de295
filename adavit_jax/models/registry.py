"""Model names and what they stand for."""

import difflib
import math
import numbers

import jax.numpy as jnp
import numpy as np

from adavit_jax.models import multi_exit
from adavit_jax.models import ravit
from adavit_jax.models.vit import ViT

_SIZES = {
    'tiny': dict(width=192, num_heads=3, depth=12),
    'small': dict(width=384, num_heads=6, depth=12),
    'base': dict(width=768, num_heads=12, depth=12),
    'large': dict(width=1024, num_heads=16, depth=24),
}


def _imagenet(family, sizes, patches, images, **more):
  """Models under timm's names, for every size, patch and image given."""
  return {
      f'{family.format(size)}_patch{patch}_{image}': dict(
          image_size=image, patch_size=patch, num_classes=1000,
          **_SIZES[size], **more)
      for size in sizes for patch in patches for image in images}


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
    **_imagenet('vit_{}', ('tiny',), (16,), (224, 384)),
    **_imagenet('vit_{}', ('small', 'base', 'large'), (16, 32), (224, 384)),
    **_imagenet('deit_{}', ('tiny', 'small', 'base'), (16,), (224,)),
    **_imagenet('deit_{}', ('base',), (16,), (384,)),
    **_imagenet('deit_{}_distilled', ('tiny', 'small', 'base'), (16,), (224,),
                distillation=True),
    **_imagenet('deit_{}_distilled', ('base',), (16,), (384,),
                distillation=True),
}

# The models of the RAViT paper.
_RAVITS = {
    'ravit_cifar_patch4_32': dict(
        image_size=32, patch_size=4, num_classes=10, width=128, num_heads=4,
        layers=(1, 3), factors=(2, 1)),
    'ravit_tiny_imagenet_patch4_64': dict(
        image_size=64, patch_size=4, num_classes=200, width=768, num_heads=12,
        layers=(2, 0, 3), factors=(4, 2, 1)),
    # Branches of 64, 128 and 224 pixels.
    'ravit_imagenet_patch16_224': dict(
        image_size=224, patch_size=16, num_classes=1000, width=768,
        num_heads=12, layers=(1, 1, 8), factors=(3.5, 1.75, 1)),
}

# Attributes of both families that count something.
_COUNTS = ('image_size', 'patch_size', 'channels', 'num_classes', 'width',
           'depth', 'num_heads')
_DTYPES = ('float32', 'bfloat16', 'float16')


def names():
  """Returns the sorted list of model names."""
  return sorted([*_MODELS, *_RAVITS])


def create(name, **overrides):
  """Creates the model `name`, with any of its attributes overridden.

  Args:
    name: one of `names()`.
    **overrides: attributes of `ViT`, or of `RAViT` for its names; `dtype` may
      be a string. With `exits` a ViT gets early exits: see `MultiExit`.

  Returns:
    A `ViT`, `RAViT` or `MultiExit` module; `adavit_jax.init_params(model, key)`
    makes its parameters.

  Raises:
    ValueError: for an unknown name or attribute, or values that do not fit
      together.
  """
  if name not in names():
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {names()}'
    raise ValueError(f'unknown model {name!r}; {hint}')
  family, check = (
      (ravit.RAViT, ravit.check) if name in _RAVITS else (ViT, _check))
  fields = set(family.__dataclass_fields__) - {'parent', 'name'}
  if family is ViT:
    fields.add('exits')
  for key in overrides:
    if key not in fields:
      raise ValueError(
          f'unknown model attribute {key!r}; known: {sorted(fields)}')
  values = {**_MODELS, **_RAVITS}[name] | overrides
  if 'dtype' in values:
    values['dtype'] = _dtype(values['dtype'])
  # JSON has no tuples, and modules are hashed.
  values = {k: _tuples(v) for k, v in values.items()}
  exits = values.pop('exits', ())
  model = family(**values)
  _check_numbers(model)
  check(model)
  if exits:
    model = multi_exit.MultiExit(model, exits)
    multi_exit.check(model)
  return model


def _tuples(value):
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def _dtype(value):
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = None
  if str(dtype) not in _DTYPES:
    raise ValueError(f'dtype={value!r} must be one of {_DTYPES}')
  return dtype


def _check_numbers(m):
  for key in _COUNTS:
    value = getattr(m, key, 1)  # a RAViT has no depth
    if not isinstance(value, numbers.Integral) or value < 1:
      raise ValueError(f'{key}={value!r} must be a whole number of at least 1')
  if (not isinstance(m.mlp_ratio, numbers.Real)
      or not 1 <= m.mlp_ratio * m.width < math.inf):
    raise ValueError(f'mlp_ratio={m.mlp_ratio!r} must be a number that makes '
                     f'the MLP at least 1 wide, at width={m.width}')


def _check(m):
  if m.image_size % m.patch_size:
    raise ValueError(f'patch_size={m.patch_size} does not divide image_size='
                     f'{m.image_size}')
  if m.width % m.num_heads:
    raise ValueError(f'num_heads={m.num_heads} does not divide width={m.width}')
  if (not isinstance(m.num_fixed, numbers.Integral)
      or m.num_fixed not in (1, 2, 3)):
    raise ValueError(f'num_fixed={m.num_fixed} must be 1, 2 or 3')
  if not isinstance(m.distillation, (bool, np.bool_)):
    raise ValueError(f'distillation={m.distillation!r} must be True or False')
  if m.num_fixed >= m.depth:
    raise ValueError(f'num_fixed={m.num_fixed} must be smaller than depth='
                     f'{m.depth}: no encoder would be left to adapt')
  if m.stem not in ('patch', 'conv'):
    raise ValueError(f"stem={m.stem!r} must be 'patch' or 'conv'")
  if m.stem == 'conv' and (m.patch_size < 2
                           or not math.log2(m.patch_size).is_integer()):
    raise ValueError(f'the conv stem halves the image: patch_size='
                     f'{m.patch_size} must be a power of two')
