"""The cross-attention of CrossViT: a class token reads the other stream."""

import flax.linen as nn
import jax.numpy as jnp

from adavit_jax.models.encoder import attention
from adavit_jax.models.encoder import gelu
from adavit_jax.models.encoder import split_heads


class CrossAttention(nn.Module):
  """Lets the class token of one stream attend to the patches of another.

  The token is projected to the width of the other stream, attends to itself and
  the patches there, and is projected back.

  Attributes:
    width: of the class token, F.
    other: width of the other stream, D.
    num_heads: H; divides D.
    dtype: compute dtype.
  """
  width: int
  other: int
  num_heads: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    dense = dict(dtype=self.dtype,
                 kernel_init=nn.initializers.truncated_normal(0.02))
    norm = dict(epsilon=1e-6, dtype=self.dtype)
    self.norm_in = nn.LayerNorm(**norm)
    self.dense_in = nn.Dense(self.other, **dense)
    self.norm = nn.LayerNorm(**norm)
    self.q = nn.Dense(self.other, **dense)
    self.k = nn.Dense(self.other, **dense)
    self.v = nn.Dense(self.other, **dense)
    self.proj = nn.Dense(self.other, **dense)
    self.norm_out = nn.LayerNorm(**norm)
    self.dense_out = nn.Dense(self.width, **dense)

  def __call__(self, token, patches):
    """Class token [B, 1, F] and patches [B, n, D] to the new token [B, 1, F].
    """
    token = self.dense_in(gelu(self.norm_in(token)))
    y = self.norm(jnp.concatenate([token, patches], axis=1))
    q, k, v = (split_heads(dense(x), self.num_heads) for dense, x in (
        (self.q, y[:, :1]), (self.k, y), (self.v, y)))
    y = attention(q, k, v)  # [B, H, 1, d]
    token = token + self.proj(y.reshape(-1, 1, self.other))
    return self.dense_out(gelu(self.norm_out(token)))


def cross_attention_macs(n, width, other):
  """MACs of `CrossAttention` with `n` patches, on one image."""
  return (2 * width * other  # in and out
          + (2 * (1 + n) + 2) * other**2  # keys and values; query, projection
          + 2 * (1 + n) * other)
