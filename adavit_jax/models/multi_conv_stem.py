"""The patch embedding of three convolutions of CrossViT (dagger models)."""

import flax.linen as nn
import jax.numpy as jnp

# (kernel, stride, padding) of each convolution, by patch size.
CONVS = {12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
         16: ((7, 4, 3), (3, 2, 1), (3, 2, 1))}


class MultiConvStem(nn.Module):
  """Convolutions to D / 4, D / 2 and D channels, with ReLU between them.

  Attributes:
    width: token width D.
    patch_size: total stride, one of `CONVS`.
    dtype: compute dtype.
  """
  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """[B, S, S, C] -> [B, (S / patch_size)^2, D], row-major."""
    x = images.astype(self.dtype)
    for i, (kernel, stride, padding) in enumerate(CONVS[self.patch_size]):
      x = nn.relu(x) if i else x
      x = nn.Conv(self.width >> (2 - i), (kernel, kernel),
                  strides=(stride, stride), padding=padding, dtype=self.dtype,
                  name=f'conv_{i}')(x)
    return x.reshape(x.shape[0], -1, self.width)


def multi_conv_macs(image_size, patch_size, channels, width):
  """MACs of `MultiConvStem` on one image."""
  macs, side = 0, image_size
  for i, (kernel, stride, padding) in enumerate(CONVS[patch_size]):
    side = (side + 2 * padding - kernel) // stride + 1
    out = width >> (2 - i)
    macs += side * side * kernel * kernel * channels * out
    channels = out
  return macs
