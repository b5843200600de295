"""Shears, shifts and rotations of images, without gathers.

Each is up to three passes that shift rows or columns; a rotation is three
shears (Paeth, 1986). A pass shifts by whole pixels in powers of two, one after
the other, and by the rest with Catmull-Rom interpolation: static slices, which
TPUs run fast where gathers are slow. Pixels stay uint8 between the passes,
since the slices move much memory.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Warp(NamedTuple):
  """How each image is warped, all float32 [B].

  Attributes:
    shear_x: pixels in x per pixel in y, about the top left corner.
    shear_y: pixels in y per pixel in x, likewise.
    move_x: pixels, by which the content moves to the left.
    move_y: pixels, by which it moves up.
    angle: radians, counterclockwise about the center. Where it is not 0, all
      others are.
  """
  shear_x: jax.Array
  shear_y: jax.Array
  move_x: jax.Array
  move_y: jax.Array
  angle: jax.Array


class Limits(NamedTuple):
  """The largest magnitudes of a `Warp`; moves as fractions of the side."""
  shear: float
  move: float
  angle: float


def warp(
    images: jax.Array, by: Warp, fill: jax.Array, limits: Limits
) -> jax.Array:
  """Warps images.

  Args:
    images: uint8 [B, H, W, C].
    by: of each image.
    fill: uint8 [C], what is outside of an image.
    limits: of the fields of `by`.

  Returns:
    uint8 [B, H, W, C].
  """
  height, width = images.shape[1:3]
  # What the first shear of a rotation moves out, the last moves in again.
  margin = math.ceil(math.tan(limits.angle / 2) * height / 2) + 2
  x = _padded(images, margin, margin, fill)
  rows = jnp.arange(height) + 0.5
  columns = jnp.arange(width + 2 * margin) + 0.5 - margin
  turn = -jnp.tan(by.angle / 2)
  along = jnp.outer(turn, rows - height / 2)  # [B, H]
  across = jnp.outer(jnp.sin(by.angle), columns - width / 2)
  x = shift(
      x, along + jnp.outer(by.shear_x, rows) + by.move_x[:, None],
      math.ceil(max(limits.shear * height, limits.move * width, margin)) + 1,
      fill)
  x = shift(
      x.swapaxes(1, 2),
      across + jnp.outer(by.shear_y, columns) + by.move_y[:, None],
      math.ceil(max(
          limits.shear * (width + margin), limits.move * height,
          math.sin(limits.angle) * (width / 2 + margin))) + 1,
      fill).swapaxes(1, 2)
  return shift(x, along, margin, fill)[:, :, margin:margin + width]


def shift(
    x: jax.Array, distance: jax.Array, most: int, fill: jax.Array
) -> jax.Array:
  """Returns x at column + distance, interpolated.

  Args:
    x: uint8 [B, R, N, C].
    distance: [B, R], pixels.
    most: the largest distance.
    fill: uint8 [C], what is outside.

  Returns:
    uint8 [B, R, N, C].
  """
  length, bits = x.shape[2], (2 * most).bit_length()
  whole = jnp.floor(distance)
  rest = (distance - whole)[..., None, None]
  steps = whole.astype(jnp.int32) + most
  # Columns -most - 1 .. of x are 0 .. here.
  end = 2**bits - 1 + 3 - most - 1
  x = _padded(x, most + 1, end, fill)
  for bit in reversed(range(bits)):
    taken = (steps >> bit & 1)[..., None, None] == 1
    x = jnp.where(taken, x[:, :, 2**bit:], x[:, :, :-2**bit])
  x = sum(weight * x[:, :, tap:tap + length]
          for tap, weight in enumerate(_catmull_rom(rest)))
  return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


def _padded(x, before, after, fill):
  """Returns x with columns of `fill`."""
  left, right = (
      jnp.broadcast_to(fill, (*x.shape[:2], length, x.shape[3]))
      for length in (before, after))
  return jnp.concatenate([left, x, right], 2)


def _catmull_rom(t):
  """Weights of the values at -1, 0, 1 and 2 for the place t in 0..1."""
  return (((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2,
          ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t * t / 2)
