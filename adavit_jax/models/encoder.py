"""The pre-LN transformer encoder as two residual branches, MSA and MLP."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention(q, k, v):
  """Softmax attention in head-major layout.

  Args:
    q: queries [B, H, Q, d].
    k: keys [B, H, N, d].
    v: values [B, H, N, d].

  Returns:
    [B, H, Q, d] in the dtype of `v`; the softmax is computed in float32.
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


def columns(dense, y, start, stop):
  """The outputs start to stop of an `nn.Dense`, computed alone.

  Args:
    dense: an initialised layer with a bias and a compute dtype.
    y: [..., F].
    start: number of the first output.
    stop: one past the last.

  Returns:
    [..., stop - start] in the dtype of the layer.
  """
  p = dense.variables['params']
  kernel, bias = (p[name][..., start:stop].astype(dense.dtype)
                  for name in ('kernel', 'bias'))
  y = y.astype(dense.dtype) @ kernel
  return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


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

  def msa(self, x, read=None):
    """Multi-head self-attention branch.

    Args:
      x: tokens [B, N, D].
      read: how many of the first tokens are read afterwards, the only ones with
        queries then; keys and values are of all N. None for all.

    Returns:
      [B, N, D], or [B, read, D].
    """
    b, n, d = x.shape
    # Two-dimensional matmuls: XLA's CPU backend is faster on them.
    y = self.norm1(x).reshape(b * n, d)
    if read is None:
      q, k, v = self._heads(self.qkv(y), b)
    else:
      first = y.reshape(b, n, d)[:, :read].reshape(-1, d)
      q, = self._heads(columns(self.qkv, first, 0, d), b)
      k, v = self._heads(columns(self.qkv, y, d, 3 * d), b)
    y = attention(q, k, v).transpose(0, 2, 1, 3)  # [B, Q, H, d]
    return self.proj(y.reshape(-1, d)).reshape(b, -1, d)

  def _heads(self, y, b):
    """[B * N, parts * D] to head-major parts, each [B, H, N, d]."""
    parts, d = y.shape[-1] // self.width, self.width // self.num_heads
    y = y.reshape(b, -1, parts, self.num_heads, d)
    return y.transpose(2, 0, 3, 1, 4)

  def mlp(self, x):
    """MLP branch (exact GELU), [B, N, D] -> [B, N, D]."""
    b, n, d = x.shape
    y = self.fc1(self.norm2(x).reshape(b * n, d))
    y = self.fc2(gelu(y))
    return y.reshape(b, n, d)

  def __call__(self, x, read=None):
    """Both branches with their residuals; shapes and `read` as in `msa`."""
    x = x[:, :read] + self.msa(x, read)
    return x + self.mlp(x)


def branches(encoder):
  """The branches of an `Encoder` as functions of its parameters and tokens.

  Returns:
    (msa, mlp), each (params, x, ...) -> what is added to x.
  """
  def branch(name):
    return lambda p, *args: encoder.apply({'params': p}, *args, method=name)
  return branch('msa'), branch('mlp')


# Flax asks for its shapes whenever a model is traced; jitted, it is itself
# traced only once.
@functools.partial(jax.jit, static_argnums=(1, 2))
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


def run_stack(encoder, stack, x, start, stop, *, read=None, unroll=1,
              remat=False, inference=False):
  """Runs some encoders of a stack in a row, by one scan.

  Args:
    encoder: `Encoder`.
    stack: its parameters, see `init_stack`.
    x: tokens [B, N, D].
    start: number of the first encoder, from 0.
    stop: one past the last.
    read: how many of the first tokens the caller reads; the last encoder, which
      is then no part of the scan, computes no others. None for all.
    unroll: encoders unrolled into one step of the scan.
    remat: recompute the encoders in the backward pass.
    inference: read the weights of each encoder where they lie, instead of
      copying those of all encoders that run; a gradient would be dearer.

  Returns:
    [B, N, D], or [B, read, D].
  """
  def run(x, p, read):
    return encoder.apply({'params': p}, x, read), None
  run = jax.checkpoint(run, static_argnums=2) if remat else run
  layer = lambda i: jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], stack)
  end = stop if read is None else max(stop - 1, start)
  if start < end:
    if inference:
      step, xs = lambda x, i: run(x, layer(i), None), jnp.arange(start, end)
    else:
      step, xs = lambda x, p: run(x, p, None), layer(slice(start, end))
    x, _ = jax.lax.scan(step, x, xs, unroll=unroll)
  if end < stop:
    x, _ = run(x, layer(end), read)
  return x[:, :read]
