"""Random erasing (Zhong et al., 2017) with noise, as DeiT uses it."""

import math

import jax
import jax.numpy as jnp

_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
  """Replaces a rectangle of some images by normal noise.

  Args:
    key: PRNG key.
    images: float32 [B, H, W, C], normalized.
    probability: of each image, in 0..1.

  Returns:
    float32 [B, H, W, C].
  """
  box_key, coin_key, noise_key = jax.random.split(key, 3)
  mask = boxes(box_key, images.shape[:3])
  erased = jax.random.bernoulli(coin_key, probability, (len(images), 1, 1))
  noise = jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.where((mask & erased)[..., None], noise, images)


def boxes(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Returns bool [B, H, W]: whether a pixel is in the rectangle of its image.

  The area fraction is uniform in 0.02..1/3, the log of height / width within
  0.3..1/0.3, and the place uniform. The first of 10 rectangles that is smaller
  than the image in both directions is taken, or none.
  """
  batch, height, width = shape
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  tried = (batch, _ATTEMPTS)
  area = jax.random.uniform(area_key, tried, minval=_AREA[0], maxval=_AREA[1])
  ratio = jnp.exp(jax.random.uniform(
      ratio_key, tried, minval=_LOG_RATIO[0], maxval=_LOG_RATIO[1]))
  area *= height * width
  size = jnp.round(jnp.stack(
      [jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)], -1))
  sides = jnp.array([height, width])
  fits = (size < sides).all(-1)
  first = jnp.argmax(fits, 1)[:, None, None]
  size = jnp.take_along_axis(size, first, 1)[:, 0] * fits.any(1)[:, None]
  place = jax.random.uniform(place_key, (batch, 2))
  start = jnp.floor(place * (sides - size + 1))  # [B, 2]

  def inside(axis, length):
    at = jnp.arange(length) - start[:, axis, None]
    return (at >= 0) & (at < size[:, axis, None])

  return inside(0, height)[:, :, None] & inside(1, width)[:, None]
