"""The pre-LN transformer encoder as two residual branches, MSA and MLP."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models.backbone import Branch
from adavit_jax.models.backbone import Delta
from adavit_jax.models.passes import on_cpu

# With more queries and keys, a CPU computes the attention of one image at a
# time; up to here, XLA fuses that of the batch.
_TOGETHER = 256


def attention(q, k, v, bias=None):
  """Softmax attention in head-major layout.

  Args:
    q: queries [B, H, Q, d].
    k: keys [B, H, N, d].
    v: values [B, H, N, d].
    bias: added to the logits of the keys, [B, N] float32; None for zeros.

  Returns:
    [B, H, Q, d] in the dtype of `v`; the softmax is computed in float32.
  """
  def run(args):
    q, k, v, bias = args
    logits = attention_logits(q, k)
    return attend(logits if bias is None else logits + bias[:, None, None], v)
  return _in_passes(run, q, k, v, bias)


def attention_and_row(q, k, v):
  """`attention`, and its weights for the first query.

  Args:
    q: queries [B, H, Q, d].
    k: keys [B, H, N, d].
    v: values [B, H, N, d].

  Returns:
    (as `attention`, weights [B, H, N] float32).
  """
  def run(qkv):
    logits = attention_logits(*qkv[:2])
    return attend(logits, qkv[2]), jax.nn.softmax(logits[:, :, 0])
  return _in_passes(run, q, k, v)


def _in_passes(run, q, k, *others):
  """Runs a function of (q, k, ...), in passes if a CPU has many tokens."""
  args = q, k, *others
  if min(q.shape[2], k.shape[2]) <= _TOGETHER:
    return run(args)
  return on_cpu(run, args, 1)


def attention_logits(q, k):
  """Scaled products of queries [B, H, Q, d] and keys [B, H, N, d].

  Returns:
    [B, H, Q, N] float32.
  """
  # The queries are scaled, since XLA may not fuse the scale of the logits.
  return jnp.einsum('bhnd,bhmd->bhnm', q * q.shape[-1] ** -0.5, k,
                    preferred_element_type=jnp.float32)


def attend(logits, v):
  """Averages the values with the softmax of the logits.

  Args:
    logits: [B, H, Q, N] float32.
    v: values [B, H, N, d].

  Returns:
    [B, H, Q, d] in the dtype of `v`.
  """
  # Softmax is invariant to shifts, so the gradient of `largest` is zero.
  largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp(logits - largest)
  # Dividing after the product takes d / N as many divisions.
  y = jnp.einsum('bhnm,bhmd->bhnd', weights.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def split_heads(y, num_heads):
  """[B, N, H * d] -> [B, H, N, d]."""
  b, n, _ = y.shape
  return y.reshape(b, n, num_heads, -1).transpose(0, 2, 1, 3)


def gelu(x):
  """Exact GELU by erf, as in torch; faster on CPU than JAX's, which uses erfc.
  """
  return 0.5 * x * (1 + jax.lax.erf(x * 0.5 ** 0.5))


def columns(dense, y, start, stop):
  """Computes only the outputs start to stop of an `nn.Dense`.

  Args:
    dense: an initialized layer with a compute dtype.
    y: [..., F].
    start: index of the first output.
    stop: one past the index of the last output.

  Returns:
    [..., stop - start] in the dtype of the layer.
  """
  p = dense.variables['params']
  part = lambda name: p[name][..., start:stop].astype(dense.dtype)
  y = y.astype(dense.dtype) @ part('kernel')
  if not dense.use_bias:
    return y
  return y + part('bias').reshape((1,) * (y.ndim - 1) + (-1,))


class Encoder(nn.Module):
  """One encoder, split into branches that can be dropped separately.

  The caller adds the residual: `x + encoder.msa(x)`, then `x + encoder.mlp(x)`
  (figure 3A of US 12,394,190). Each branch includes its LayerNorm.

  Attributes:
    width: token width D.
    num_heads: H; divides `width`.
    mlp_dim: hidden width of the MLP.
    dtype: compute dtype; parameters are float32.
    qkv_bias: whether queries, keys and values have a bias.
    epsilon: added to the variance in LayerNorm.
  """
  width: int
  num_heads: int
  mlp_dim: int
  dtype: jnp.dtype = jnp.float32
  qkv_bias: bool = True
  epsilon: float = 1e-6

  def setup(self):
    dense = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    norm = dict(epsilon=self.epsilon, dtype=self.dtype)
    self.norm1 = nn.LayerNorm(**norm)
    self.qkv = nn.Dense(3 * self.width, use_bias=self.qkv_bias, **dense)
    self.proj = nn.Dense(self.width, **dense)
    self.norm2 = nn.LayerNorm(**norm)
    self.fc1 = nn.Dense(self.mlp_dim, **dense)
    self.fc2 = nn.Dense(self.width, **dense)

  def msa(self, x, read=None, bias=None):
    """Multi-head self-attention branch.

    Args:
      x: tokens [B, N, D].
      read: number of leading tokens to compute; None for all. Only these have
        queries; keys and values are computed for all N tokens.
      bias: added to the logits of the keys, [B, N] float32; None for zeros.

    Returns:
      [B, N, D], or [B, read, D].
    """
    return self._joined(attention(*self._qkv(x, read), bias))

  def mean_keys(self, x):
    """The mean over heads of the keys of the MSA branch.

    Args:
      x: tokens [B, N, D].

    Returns:
      [B, N, d].
    """
    d, p = self.width, self.qkv.variables['params']
    # Keys are linear, so their mean takes 1 / H of their MACs.
    mean = lambda leaf: leaf[..., d:2 * d].reshape(
        *leaf.shape[:-1], self.num_heads, -1).mean(-2).astype(self.dtype)
    y = self.norm1(x).reshape(-1, d) @ mean(p['kernel'])
    y = y + mean(p['bias']) if self.qkv_bias else y
    return y.reshape(*x.shape[:2], -1)

  def msa_with(self, x, attend):
    """The MSA branch with other attention.

    Args:
      x: tokens [B, N, D].
      attend: function of queries, keys and values [B, H, N, d] that returns
        [B, H, N, d].

    Returns:
      [B, N, D].
    """
    return self._joined(attend(*self._qkv(x, None)))

  def msa_and_row(self, x):
    """The MSA branch, and the attention of the first token.

    Args:
      x: tokens [B, N, D].

    Returns:
      (branch [B, N, D], weights of each head [B, H, N] float32, of sum 1).
    """
    y, row = attention_and_row(*self._qkv(x, None))
    return self._joined(y), row

  def msa_and_logits(self, x, relations=None):
    """The MSA branch, and its logits.

    Args:
      x: tokens [B, N, D].
      relations: [B, H, N, N], added to the logits; None for zeros.

    Returns:
      (branch [B, N, D], logits before the softmax [B, H, N, N] float32).
    """
    q, k, v = self._qkv(x, None)
    logits = attention_logits(q, k)
    if relations is not None:
      logits += relations
    return self._joined(attend(logits, v)), logits

  def _qkv(self, x, read):
    """[B, N, D] -> queries [B, H, Q, d], keys and values [B, H, N, d]."""
    b, n, d = x.shape
    # XLA's CPU backend is faster on two-dimensional matmuls.
    y = self.norm1(x).reshape(b * n, d)
    if read is None:
      return self._heads(self.qkv(y), b)
    first = y.reshape(b, n, d)[:, :read].reshape(-1, d)
    q, = self._heads(columns(self.qkv, first, 0, d), b)
    return q, *self._heads(columns(self.qkv, y, d, 3 * d), b)

  def _joined(self, y):
    """Projects heads [B, H, Q, d] to [B, Q, D]."""
    b, d = y.shape[0], self.width
    y = y.transpose(0, 2, 1, 3)  # [B, Q, H, d]
    return self.proj(y.reshape(-1, d)).reshape(b, -1, d)

  def _heads(self, y, b):
    """[B * N, parts * D] -> [parts, B, H, N, d]."""
    parts, d = y.shape[-1] // self.width, self.width // self.num_heads
    y = y.reshape(b, -1, parts, self.num_heads, d)
    return y.transpose(2, 0, 3, 1, 4)

  def mlp(self, x):
    """MLP branch with exact GELU, [B, N, D] -> [B, N, D].

    In a subclass that widens its input, x may be wider than D.
    """
    b, n, width = x.shape
    y = self.fc1(self.norm2(x).reshape(b * n, width))
    y = self.fc2(gelu(y))
    return y.reshape(b, n, self.width)

  def __call__(self, x, read=None):
    """Both branches with their residuals; shapes and `read` as in `msa`."""
    x = x[:, :read] + self.msa(x, read)
    return x + self.mlp(x)


def branches(encoder, at):
  """The two branches of an `Encoder` for a plan.

  Args:
    encoder: `Encoder`.
    at: `Tokens` of its input and output.

  Returns:
    (MSA `Branch`, MLP `Branch`).
  """
  def msa(params, x, read, ctx):
    del ctx
    return Delta(encoder.apply({'params': params}, x, read, method='msa'))

  def mlp(params, x, read, ctx):
    del read, ctx
    return Delta(encoder.apply({'params': params}, x, method='mlp'))

  n, d, hidden = at.num, encoder.width, encoder.mlp_dim
  msa_macs, mlp_macs = macs(n, d, hidden)
  msa_unread, mlp_unread = unread_macs(n, at.prefix, d, hidden)
  return (Branch('msa', msa, msa_macs, msa_unread),
          Branch('mlp', mlp, mlp_macs, mlp_unread, local=True))


def macs(n, d, mlp_dim):
  """MACs of one encoder over N tokens of width D: (MSA, MLP)."""
  return 4 * n * d * d + 2 * n * n * d, 2 * n * d * mlp_dim


def unread_macs(n, read, d, mlp_dim):
  """MACs saved if only `read` tokens are computed: (MSA, MLP).

  These are queries, attention, projection and MLP of the other tokens.
  """
  return (n - read) * (2 * d * d + 2 * n * d), (n - read) * 2 * d * mlp_dim


# Jitted because Flax evaluates its shapes every time a model is traced: it is
# traced only once then.
@functools.partial(jax.jit, static_argnums=(1, 2))
def init_stack(key, encoder, num_layers):
  """Initializes a stack of encoders.

  Args:
    key: PRNG key.
    encoder: `Encoder`.
    num_layers: L.

  Returns:
    Parameters of `Encoder` with a leading axis, [L, ...].
  """
  x = jnp.zeros((1, 1, encoder.width))
  init = lambda key: encoder.init(key, x)['params']
  return jax.vmap(init)(jax.random.split(key, num_layers))


def scan_stack(encoder, stack, x):
  """Runs a stack of encoders in sequence.

  Args:
    encoder: `Encoder`.
    stack: parameters, see `init_stack`.
    x: tokens [B, N, D].

  Returns:
    [B, N, D].
  """
  return jax.lax.scan(
      lambda x, p: (encoder.apply({'params': p}, x), None), x, stack)[0]
