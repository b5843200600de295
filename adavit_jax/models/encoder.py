"""The pre-LN transformer encoder as two residual branches, MSA and MLP."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention(q, k, v):
  """Softmax attention in head-major layout.

  Args:
    q: queries [B, H, N, d].
    k: keys [B, H, N, d].
    v: values [B, H, N, d].

  Returns:
    [B, H, N, d] in the dtype of `v`; the softmax is computed in float32.
  """
  logits = jnp.einsum('bhnd,bhmd->bhnm', q, k,
                      preferred_element_type=jnp.float32)
  logits = logits * q.shape[-1] ** -0.5
  # Its gradient is zero: a softmax does not change with a shift.
  largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp(logits - largest)
  # Divided after the product, which is N / d times less to divide.
  y = jnp.einsum('bhnm,bhmd->bhnd', weights.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def gelu(x):
  """Exact GELU by erf, as torch has it; on CPU faster than JAX's by erfc."""
  return 0.5 * x * (1 + jax.lax.erf(x * 0.5 ** 0.5))


class Encoder(nn.Module):
  """One encoder, split so that either branch can be left out.

  The caller adds the residual: `x + encoder.msa(x)`, then `x + encoder.mlp(x)`
  (figure 3A of US 12,394,190). LayerNorm belongs to its branch, so a dropped
  branch drops its normalisation too.

  Attributes:
    width: token width D.
    num_heads: H; divides `width`.
    mlp_dim: hidden width of the MLP.
    dtype: compute dtype; parameters are float32.
  """
  width: int
  num_heads: int
  mlp_dim: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    dense = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    self.norm1 = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.qkv = nn.Dense(3 * self.width, **dense)
    self.proj = nn.Dense(self.width, **dense)
    self.norm2 = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.fc1 = nn.Dense(self.mlp_dim, **dense)
    self.fc2 = nn.Dense(self.width, **dense)

  def msa(self, x):
    """Multi-head self-attention branch, [B, N, D] -> [B, N, D]."""
    b, n, d = x.shape
    # Two-dimensional matmuls: XLA's CPU backend is faster on them.
    qkv = self.qkv(self.norm1(x).reshape(b * n, d))
    qkv = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # [B, H, N, d] each
    y = attention(q, k, v).transpose(0, 2, 1, 3)  # [B, N, H, d]
    return self.proj(y.reshape(b * n, d)).reshape(b, n, d)

  def mlp(self, x):
    """MLP branch (exact GELU), [B, N, D] -> [B, N, D]."""
    b, n, d = x.shape
    y = self.fc1(self.norm2(x).reshape(b * n, d))
    y = self.fc2(gelu(y))
    return y.reshape(b, n, d)

  def __call__(self, x):
    """Both branches with their residuals, [B, N, D] -> [B, N, D]."""
    x = x + self.msa(x)
    return x + self.mlp(x)


def init_stack(key, encoder, num_layers):
  """Initialises a stack of encoders.

  Args:
    key: PRNG key.
    encoder: `Encoder`.
    num_layers: L.

  Returns:
    The parameters of one encoder, every leaf with a leading axis [L, ...].
  """
  x = jnp.zeros((1, 1, encoder.width))
  init = lambda key: encoder.init(key, x)['params']
  return jax.vmap(init)(jax.random.split(key, num_layers))
