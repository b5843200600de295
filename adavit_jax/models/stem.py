"""Patch embeddings: a linear stem and a convolutional stem."""

import math

import flax.linen as nn
import jax.numpy as jnp

from adavit_jax.models.encoder import gelu


class PatchStem(nn.Module):
  """A linear projection of non-overlapping patches (ViT).

  Attributes:
    width: token width D.
    patch_size: side of a patch in pixels.
    dtype: compute dtype.
    padding: zeros added on each side of the image.
  """
  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32
  padding: int = 0

  @nn.compact
  def __call__(self, images):
    """[B, S, S, C] -> [B, n * n, D], row-major, n patches fit a side."""
    p, padding = self.patch_size, self.padding
    x = nn.Conv(self.width, (p, p), strides=(p, p), padding=padding,
                dtype=self.dtype, name='proj')(images.astype(self.dtype))
    return x.reshape(x.shape[0], -1, self.width)


class ConvStem(nn.Module):
  """The convolutional embedding network of the patent (figure 1, block 110).

  log2(patch_size) 3x3 convolutions of stride 2 with LayerNorm and GELU, which
  double the channels up to D, then a 1x1 projection. The token grid is the same
  as that of `PatchStem`.

  Attributes:
    width: token width D.
    patch_size: total stride, a power of two.
    dtype: compute dtype.
  """
  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """[B, S, S, C] -> [B, (S / patch_size)^2, D], row-major."""
    x = images.astype(self.dtype)
    for channels in conv_stem_channels(self.width, self.patch_size):
      x = nn.Conv(channels, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)),
                  use_bias=False, dtype=self.dtype)(x)
      x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
      x = gelu(x)
    x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name='proj')(x)
    return x.reshape(x.shape[0], -1, self.width)


def conv_stem_channels(width, patch_size):
  """Output channels of each stride-2 convolution of `ConvStem`."""
  steps = int(math.log2(patch_size))
  return [max(width >> (steps - 1 - i), 8) for i in range(steps)]


def stem_macs(stem, image_size, patch_size, channels, width):
  """MACs of the stem 'patch' or 'conv' for one image."""
  grid = image_size // patch_size
  if stem == 'patch':
    return grid * grid * patch_size * patch_size * channels * width
  macs, side = 0, image_size
  for out in conv_stem_channels(width, patch_size):
    side //= 2
    macs += side * side * 9 * channels * out
    channels = out
  return macs + grid * grid * channels * width
