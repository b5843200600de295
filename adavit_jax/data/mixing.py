"""Training targets, mixup and cutmix."""

import jax
import jax.numpy as jnp

from adavit_jax.data import splits


def smooth_one_hot(
    labels: jax.Array, *, num_classes: int, smoothing: float = 0.0
) -> jax.Array:
  """Returns targets float32 [B, K], with `smoothing` spread over K classes."""
  targets = jax.nn.one_hot(labels, num_classes)
  if smoothing:
    targets = targets * (1 - smoothing) + smoothing / num_classes
  return targets


def standardize(labels: jax.Array, target: splits.Target) -> jax.Array:
  """Normalizes regression labels [B] to targets float32 [B, 1]."""
  return ((jnp.float32(labels) - target.mean) / target.std)[:, None]


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    shift: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Blends each image and its target with others of the batch.

  The weights of the blend are a map: constant for mixup (Zhang et al., 2018); 0
  inside a rectangle and 1 outside for cutmix (Yun et al., 2019). The weight of
  the target is the mean of the map. If both are on, one of them is drawn per
  batch. Batches are shuffled, so the image `shift` rows before is a random
  partner, and with a sharded batch each device receives only `shift` images.

  Args:
    key: PRNG key.
    images: float [B, H, W, C].
    targets: float [B, K].
    mixup: alpha of Beta(alpha, alpha) for the weight of each image; 0 = off.
    cutmix: alpha of Beta(alpha, alpha) for the area that each image keeps; 0 =
      off.
    shift: rows from each image to its partner. If images are repeated in
      adjacent rows, their number of repeats, so that no image is blended with
      itself.

  Returns:
    Images [B, H, W, C] and targets [B, K].
  """
  coin_key, mixup_key, cutmix_key = jax.random.split(key, 3)
  batch, height, width, _ = images.shape
  if mixup:
    weight = jax.random.beta(mixup_key, mixup, mixup, (batch, 1, 1))
    maps = jnp.broadcast_to(weight, (batch, height, width))
  if cutmix:
    boxes = cutmix_maps(
        cutmix_key, alpha=cutmix, shape=(batch, height, width))
    maps = jnp.where(
        jax.random.bernoulli(coin_key), boxes, maps
    ) if mixup else boxes
  share = maps.mean((1, 2))[:, None]  # [B, 1]
  maps = maps[..., None]  # [B, H, W, 1]
  return (
      maps * images + (1 - maps) * jnp.roll(images, shift, axis=0),
      share * targets + (1 - share) * jnp.roll(targets, shift, axis=0))


def cutmix_maps(
    key: jax.Array, *, alpha: float, shape: tuple[int, int, int]
) -> jax.Array:
  """Returns float32 [B, H, W]: 0 inside a random rectangle, 1 outside.

  The rectangle has the aspect ratio of the image and the area fraction
  1 - Beta(alpha, alpha) before it is clipped to the image. Its center is
  uniform in the image.
  """
  batch, height, width = shape
  area_key, center_key = jax.random.split(key)
  kept = jax.random.beta(area_key, alpha, alpha, (batch, 1))
  sides = jnp.array([height, width])
  half = jnp.sqrt(1 - kept) * sides / 2  # [B, 2]
  center = jax.random.uniform(center_key, (batch, 2)) * sides
  low, high = jnp.round(center - half), jnp.round(center + half)

  def inside(axis, length):
    at = jnp.arange(length)
    return (low[:, axis, None] <= at) & (at < high[:, axis, None])

  box = inside(0, height)[:, :, None] & inside(1, width)[:, None, :]
  return 1 - box.astype(jnp.float32)
