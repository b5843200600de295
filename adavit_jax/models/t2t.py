"""The tokens-to-token stem of T2T-ViT, with performers (arXiv:2101.11986)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models.encoder import gelu

# Width of the performers, and the number of their random features.
WIDTH, FEATURES = 64, 32
# (size, stride, padding) of the windows after the first ones.
_NEXT = (3, 2, 1)
EPSILON = 1e-5  # of every LayerNorm of T2T-ViT, torch's default


def unfold(images, size, stride, padding):
  """Cuts square images into overlapping windows, as torch's `Unfold`.

  Args:
    images: [B, S, S, C].
    size: side of a window.
    stride: distance of neighboring windows.
    padding: zeros added on each side.

  Returns:
    [B, n * n, C * size * size], in row-major order; the numbers of a window are
    ordered by channel, row and column.
  """
  num = side(images.shape[1], (size, stride, padding))
  edge = (padding, padding)
  x = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))

  def windows(x, axis):
    # Slices rather than a gather, whose gradient is a slow scatter.
    last = (num - 1) * stride + 1
    return jnp.stack([
        jax.lax.slice_in_dim(x, i, i + last, stride, axis)
        for i in range(size)], axis + 1)

  x = windows(windows(x, 1), 3)  # [B, n, size, n, size, C]
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(x.shape[0], num * num, -1)


def side(size, window):
  """Number of windows (size, stride, padding) along a side of `size`."""
  k, stride, padding = window
  return (size + 2 * padding - k) // stride + 1


def sides(image_size, window):
  """Sides of the three grids of the stem; the last is that of the tokens."""
  grids = [side(image_size, window)]
  for _ in range(2):
    grids.append(side(grids[-1], _NEXT))
  return grids


def linear_attention(q, k, v, w):
  """Attention with positive random features (Performer, arXiv:2009.14794).

  Args:
    q: queries [B, N, e].
    k: keys [B, N, e].
    v: values [B, N, e].
    w: random directions [m, e].

  Returns:
    [B, N, e] float32; computed in float32, the exponents at full precision.
  """
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))

  def features(x):
    norm = (x * x).sum(-1, keepdims=True) / 2
    # Accelerators round the factors of a float32 product by default, and exp
    # would turn the error of a large exponent into one of the feature's size.
    y = jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.exp(y - norm) / math.sqrt(len(w))  # [B, N, m]

  q, k = features(q), features(k)
  values = jnp.einsum('bnm,bne->bme', k, v)
  total = jnp.einsum('bnm,bm->bn', q, k.sum(1))
  return jnp.einsum('bnm,bme->bne', q, values) / (total[..., None] + 1e-8)


class Performer(nn.Module):
  """A layer of linear attention and an MLP, both of width 64.

  The skip connection of the attention starts at its values, since the input has
  another width. The random directions w are not trained.

  Attributes:
    dtype: compute dtype; the attention is in float32.
  """
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[B, N, I] -> [B, N, 64]."""
    normal = nn.initializers.truncated_normal(0.02)
    dense = lambda width, name: nn.Dense(
        width, dtype=self.dtype, kernel_init=normal, name=name)
    norm = lambda name: nn.LayerNorm(
        epsilon=EPSILON, dtype=self.dtype, name=name)
    w = jax.lax.stop_gradient(self.param('w', _directions))
    k, q, v = jnp.split(dense(3 * WIDTH, 'kqv')(norm('norm1')(x)), 3, -1)
    y = linear_attention(q, k, v, w).astype(self.dtype)
    x = v + dense(WIDTH, 'proj')(y)
    y = dense(WIDTH, 'fc1')(norm('norm2')(x))
    return x + dense(WIDTH, 'fc2')(gelu(y))


def _directions(key):
  """Orthogonal random directions of length sqrt(m), [m, e]."""
  orthogonal = nn.initializers.orthogonal(math.sqrt(FEATURES))
  return orthogonal(key, (FEATURES, WIDTH), jnp.float32)


class T2TStem(nn.Module):
  """Windows, performer, windows, performer, windows, projection (T2T-ViT).

  Attributes:
    width: token width D.
    window: (size, stride, padding) of the first windows.
    dtype: compute dtype.
  """
  width: int
  window: tuple[int, int, int]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """[B, S, S, C] -> [B, n * n, D], row-major; n is the last of `sides`."""
    x = unfold(images.astype(self.dtype), *self.window)
    for i in (1, 2):
      x = Performer(self.dtype, name=f'performer_{i}')(x)
      n = math.isqrt(x.shape[1])
      x = unfold(x.reshape(-1, n, n, WIDTH), *_NEXT)
    return nn.Dense(
        self.width, dtype=self.dtype, name='proj',
        kernel_init=nn.initializers.truncated_normal(0.02))(x)


def macs(image_size, window, channels, width):
  """MACs of the stem for one image."""
  grids, total = sides(image_size, window), 0
  inputs = channels * window[0] ** 2
  for n in grids[:2]:
    # kqv; features of queries and keys, values twice; proj, MLP; the sums.
    total += n * n * (inputs * 3 * WIDTH + 4 * WIDTH * FEATURES
                      + 3 * WIDTH ** 2 + FEATURES)
    inputs = WIDTH * _NEXT[0] ** 2
  return total + grids[2] ** 2 * inputs * width


def sinusoids(num, width):
  """The fixed position embedding, float32 [1, num, width].

  Entries 2 i and 2 i + 1 of position p are sine and cosine of p / 10000^(2 i /
  width).
  """
  rates = 10000 ** (np.arange(width) // 2 * 2 / width)
  angles = np.arange(num)[:, None] / rates
  even = np.arange(width) % 2 == 0
  return np.where(even, np.sin(angles), np.cos(angles))[None].astype(np.float32)
