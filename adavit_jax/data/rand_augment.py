"""RandAugment (Cubuk et al., 2019) on the device, as DeiT uses it.

The operations, their ranges and their probability are those of timm's
'rand-m9-mstd0.5-inc1': for every image, `layers` operations are drawn, and each
is skipped with probability 1/2. Colors are computed as by Pillow. Rotations
and shears interpolate along rows and columns instead of in both directions at
once.
"""

import math

import jax
import jax.numpy as jnp

from adavit_jax.data import color
from adavit_jax.data import warps

MOST = 10  # the largest magnitude
_LIMITS = warps.Limits(shear=0.3, move=0.45, angle=math.radians(30))

# The first is what an operation that is skipped does. Those before 'color' are
# tables of values.
OPERATIONS = (
    'identity', 'auto_contrast', 'equalize', 'invert', 'posterize', 'solarize',
    'solarize_add', 'contrast', 'brightness', 'color', 'sharpness', 'rotate',
    'shear_x', 'shear_y', 'move_x', 'move_y')
_TABLES = OPERATIONS[:9]


def rand_augment(
    key: jax.Array,
    images: jax.Array,
    *,
    magnitude: float,
    std: float,
    layers: int,
    fill,
) -> jax.Array:
  """Applies random operations to each image.

  Args:
    key: PRNG key.
    images: uint8 [B, H, W, 3].
    magnitude: mean of the normal distribution of magnitudes, in 0..10.
    std: its standard deviation; magnitudes are clipped to 0..10.
    layers: number of operations.
    fill: 3 values in 0..255 outside of rotated, sheared and moved images.

  Returns:
    uint8 [B, H, W, 3].
  """
  def layer(images, key):
    kind_key, skip_key, level_key, sign_key = jax.random.split(key, 4)
    shape = len(images),
    kind = jax.random.randint(kind_key, shape, 1, len(OPERATIONS))
    kind = jnp.where(jax.random.bernoulli(skip_key, shape=shape), 0, kind)
    level = jnp.clip(
        magnitude + std * jax.random.normal(level_key, shape), 0, MOST)
    sign = jax.random.rademacher(sign_key, shape, jnp.float32)
    return apply(images, kind, level / MOST, sign, fill), None

  return jax.lax.scan(layer, images, jax.random.split(key, layers))[0]


def apply(
    images: jax.Array, kind: jax.Array, level: jax.Array, sign: jax.Array, fill
) -> jax.Array:
  """Applies one operation to each image.

  Args:
    images: uint8 [B, H, W, 3].
    kind: int [B], place in OPERATIONS.
    level: float32 [B], magnitude in 0..1.
    sign: float32 [B], -1 or 1, of operations with two directions.
    fill: 3 values in 0..255.

  Returns:
    uint8 [B, H, W, 3].
  """
  def only(name, value, otherwise=0.):
    return jnp.where(kind == OPERATIONS.index(name), value, otherwise)

  height, width = images.shape[1:3]
  factor = jnp.maximum(0.1, 1 + sign * level * 0.9)
  table = jnp.where(kind < len(_TABLES), kind, 0)[:, None, None, None]
  tables = jnp.take_along_axis(
      _tables(images, level, factor), table, 1)[:, 0]
  images = color.look_up(images, tables)
  images = color.blend(
      color.gray(images), images, only('color', factor, 1.))
  images = color.blend(
      color.smooth(images), images, only('sharpness', factor, 1.))
  amount = sign * level
  return warps.warp(images, warps.Warp(
      shear_x=only('shear_x', amount * _LIMITS.shear),
      shear_y=only('shear_y', amount * _LIMITS.shear),
      move_x=only('move_x', amount * _LIMITS.move * width),
      move_y=only('move_y', amount * _LIMITS.move * height),
      angle=only('rotate', amount * _LIMITS.angle),
  ), jnp.asarray(fill, jnp.uint8), _LIMITS)


def _tables(images, level, factor):
  """Returns uint8 [B, 9, 256, 3], the tables of every image."""
  counts = color.histograms(images)
  values = jnp.arange(256)[:, None]  # [256, 1]
  level = level[:, None, None]
  dropped = 4 + jnp.floor(level * 4).astype(jnp.int32)  # low bits
  threshold = 256 - jnp.floor(level * 256)
  added = jnp.floor(level * 110)
  mean = color.mean_gray(images)[:, None, None]
  of_table = dict(
      identity=values,
      auto_contrast=color.auto_contrast(counts),
      equalize=color.equalize(counts),
      invert=255 - values,
      posterize=values >> dropped << dropped,
      solarize=jnp.where(values < threshold, values, 255 - values),
      solarize_add=jnp.where(
          values < 128, jnp.minimum(values + added, 255), values),
      contrast=color.blend(mean, values[None], factor),
      brightness=color.blend(jnp.zeros_like(mean), values[None], factor))
  shape = len(images), 256, 3
  return jnp.stack([
      jnp.broadcast_to(of_table[name], shape).astype(jnp.uint8)
      for name in _TABLES], 1)
