"""Operations on colors, with the integer arithmetic of Pillow's.

Images are uint8 [B, H, W, 3]; each has numbers of its own, [B]. Most operations
are tables: [B, 256, 3], the new value of each value of each channel.
"""

import jax
import jax.numpy as jnp

_VALUES = 256


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
  """Returns the value of each pixel in the tables, [B, H, W, 3]."""
  def gathered(images, tables):
    batch, height, width, channels = images.shape
    index = images.reshape(batch, height * width, channels).astype(jnp.int32)
    return jnp.take_along_axis(tables, index, 1).reshape(images.shape)

  # TPUs gather and scatter one element after the other.
  return jax.lax.platform_dependent(
      images, tables, tpu=compared, default=gathered)


def compared(images: jax.Array, tables: jax.Array) -> jax.Array:
  """`look_up` by comparisons with all values, which compile to one loop."""
  hit = images[..., None] == jnp.arange(_VALUES)  # [B, H, W, 3, 256]
  table = tables.astype(jnp.int32).swapaxes(1, 2)[:, None, None]
  return jnp.where(hit, table, 0).sum(-1).astype(tables.dtype)


def histograms(images: jax.Array) -> jax.Array:
  """Returns int32 [B, 256, 3], the number of pixels of each value."""
  def scattered(images):
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, height * width, channels).astype(jnp.int32)
    counts = jnp.zeros((batch, _VALUES, channels), jnp.int32)
    return counts.at[jnp.arange(batch)[:, None, None], flat,
                     jnp.arange(channels)].add(1)

  return jax.lax.platform_dependent(
      images, tpu=counted, default=scattered)


def counted(images: jax.Array) -> jax.Array:
  """`histograms` by comparisons with all values."""
  hit = images[..., None, :] == jnp.arange(_VALUES)[:, None]
  return hit.sum((1, 2), dtype=jnp.int32)


def gray(images: jax.Array) -> jax.Array:
  """Returns the luma of ITU-R 601, int32 [B, H, W, 1]."""
  weights = jnp.array([19595, 38470, 7471])
  luma = (images.astype(jnp.int32) * weights).sum(-1, keepdims=True)
  return (luma + (1 << 15)) >> 16


def mean_gray(images: jax.Array) -> jax.Array:
  """Returns the rounded mean luma of each image, float32 [B]."""
  return jnp.floor(gray(images).astype(jnp.float32).mean((1, 2, 3)) + 0.5)


def blend(other: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
  """Returns other + factor * (images - other), clipped, rounded down.

  Args:
    other: [B, ...], broadcastable to the images.
    images: [B, H, W, 3], or tables.
    factor: [B]; 1 keeps the images.
  """
  factor = factor.reshape(-1, *(1,) * (images.ndim - 1))
  x, other = images.astype(jnp.float32), other.astype(jnp.float32)
  return jnp.clip(other + factor * (x - other), 0, 255).astype(jnp.uint8)


def smooth(images: jax.Array) -> jax.Array:
  """Returns means over 3 x 3 pixels, the middle counting 5; edges stay."""
  x = images.astype(jnp.int32)
  height, width = images.shape[1:3]
  total = 4 * x[:, 1:-1, 1:-1] + sum(
      x[:, i:height - 2 + i, j:width - 2 + j]
      for i in range(3) for j in range(3))
  return images.at[:, 1:-1, 1:-1].set(
      ((2 * total + 13) // 26).astype(jnp.uint8))


def auto_contrast(counts: jax.Array) -> jax.Array:
  """Table that stretches each channel to 0..255.

  Args:
    counts: `histograms`.
  """
  used, values = counts > 0, jnp.arange(_VALUES)[:, None]
  low = jnp.argmax(used, 1)[:, None]  # [B, 1, 3]
  high = _VALUES - 1 - jnp.argmax(used[:, ::-1], 1)[:, None]
  stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
  return jnp.where(
      high > low, jnp.clip(stretched, 0, 255), values).astype(jnp.uint8)


def equalize(counts: jax.Array) -> jax.Array:
  """Table that makes the histogram of each channel flat.

  Args:
    counts: `histograms`.
  """
  values = jnp.arange(_VALUES)[:, None]
  highest = _VALUES - 1 - jnp.argmax((counts > 0)[:, ::-1], 1)[:, None]
  last = jnp.take_along_axis(counts, highest, 1)  # [B, 1, 3]
  step = (counts.sum(1, keepdims=True) - last) // 255
  before = jnp.cumsum(counts, 1) - counts
  flat = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
  return jnp.where(step > 0, flat, values).astype(jnp.uint8)


def color_jitter(
    key: jax.Array, images: jax.Array, strength: float
) -> jax.Array:
  """Changes brightness, contrast and saturation, in an order of each image.

  The factors are uniform in 1 - strength..1 + strength, and at least 0
  (torchvision's ColorJitter, without hue).

  Args:
    key: PRNG key.
    images: uint8 [B, H, W, 3].
    strength: above 0.

  Returns:
    uint8 [B, H, W, 3].
  """
  factor_key, order_key = jax.random.split(key)
  batch = len(images)
  factors = jax.random.uniform(
      factor_key, (batch, 3), minval=max(0., 1 - strength),
      maxval=1 + strength)
  orders = jnp.argsort(jax.random.uniform(order_key, (batch, 3)), axis=-1)
  for turn in range(3):
    kind = orders[:, turn]
    images = jitter(
        images, kind, jnp.take_along_axis(factors, kind[:, None], 1)[:, 0])
  return images


def jitter(images: jax.Array, kind: jax.Array, factor: jax.Array) -> jax.Array:
  """Changes one property of each image.

  Args:
    images: uint8 [B, H, W, 3].
    kind: int [B]; 0 brightness, 1 contrast, 2 saturation.
    factor: [B].
  """
  kind = kind[:, None, None, None]
  luma = gray(images)
  mean = mean_gray(images)[:, None, None, None]
  other = jnp.where(kind == 0, 0, jnp.where(kind == 1, mean, luma))
  return blend(other, images, factor)
