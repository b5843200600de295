"""The parameters with which a transformer of DVT reuses the one before it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import upsample
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import gelu

# Widths of the MLP that prepares features (DVT's code).
HIDDEN, FEATURES = 128, 48


class ReusingEncoder(Encoder):
  """An encoder whose MLP also reads features of the previous transformer.

  Its LayerNorm and its MLP are over D + 48 numbers: the token, and features of
  the same place (DVT, feature reuse). The residual carries the token alone.
  """

  def setup(self):
    super().setup()
    dense = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    self.reuse_norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
    self.reuse_fc1 = nn.Dense(HIDDEN, **dense)
    self.reuse_fc2 = nn.Dense(FEATURES, **dense)

  def features(self, x):
    """Prepares tokens of the previous transformer, [B, N, D] -> [B, N, 48]."""
    return self.reuse_fc2(gelu(self.reuse_fc1(self.reuse_norm(x))))

  def reusing_mlp(self, x, previous, old, new):
    """The MLP branch.

    Args:
      x: tokens [B, 1 + new * new, D], the class token first.
      previous: tokens of the previous transformer [B, 1 + old * old, D], before
        its last LayerNorm.
      old: side of the previous grid.
      new: side of this grid.

    Returns:
      [B, 1 + new * new, D].
    """
    context = upsample.features(self.features(previous), old, new)
    return self.mlp(jnp.concatenate([x, context], -1))

  def __call__(self, x):
    """Both branches; reuses x itself, which initializes all parameters."""
    x = x + self.msa(x)
    return x + self.mlp(jnp.concatenate([x, self.features(x)], -1))


def features_macs(old, new, width, mlp_dim):
  """MACs of one encoder's feature reuse, without those of its plain MLP.

  Returns:
    (MLP that prepares the features and wider input of the encoder's MLP,
    upsampling).
  """
  prepared = (1 + old * old) * (width * HIDDEN + HIDDEN * FEATURES)
  wider = (1 + new * new) * FEATURES * mlp_dim
  return prepared + wider, upsample.macs(old, new, FEATURES)


class Relations(nn.Module):
  """Transforms the logits of all encoders at once (DVT, relationship reuse).

  Two convolutions of size 1 with a GELU between them, over the C = L * H maps
  of L encoders with H heads, at the resolution of the previous transformer.

  Attributes:
    dtype: compute dtype.
  """
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, logits):
    """[B, L, H, N, N] -> [B, L, H, N, N]."""
    b, layers, heads, n, _ = logits.shape
    c = layers * heads
    x = logits.reshape(b, c, n * n)
    x = self._convolution(x, 3 * c, 'fc1')
    x = self._convolution(gelu(x), c, 'fc2')
    return x.reshape(logits.shape)

  def _convolution(self, x, width, name):
    """[B, C, M] -> [B, width, M]."""
    kernel, bias = _Convolution(width, name=name)(x.shape[1])
    y = jnp.einsum('bcm,cd->bdm', x, kernel.astype(self.dtype))
    return y + bias.astype(self.dtype)[:, None]


class _Convolution(nn.Module):
  """Kernel [C, width] and bias [width], initialized as by torch's Conv2d."""
  width: int

  @nn.compact
  def __call__(self, channels):
    def uniform(key, shape, dtype):
      bound = channels ** -0.5
      return jax.random.uniform(key, shape, dtype, -bound, bound)
    return (self.param('kernel', uniform, (channels, self.width), jnp.float32),
            self.param('bias', uniform, (self.width,), jnp.float32))


def relations_macs(old, channels):
  """MACs of `Relations` over C channels for one image."""
  return 6 * channels ** 2 * (1 + old * old) ** 2
