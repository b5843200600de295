"""The layers of LeViT: attention with distance biases, MLP and subsampling.

Pure functions on arrays. BatchNorm follows every matrix product; see
`batch_norm` for the parameters of a layer.
"""

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import batch_norm
from adavit_jax.models.backbone import Delta
from adavit_jax.models.encoder import attend
from adavit_jax.models.encoder import attention_logits
from adavit_jax.models.encoder import split_heads

STRIDE = 2  # of the subsampling
VALUES = 2  # width of a value over that of a key
VALUES_SUBSAMPLE = 4  # the same in the subsampling
MLP_RATIO = 2


def attention(side, num_heads, key_dim, p, x, read, ctx):
  """The branch MSA.

  Args:
    side: of the grid of tokens.
    num_heads: H.
    key_dim: k, width of a query and of a key.
    p: layers `qkv` and `proj`; `table` [H, side^2], or folded `biases`
      [H, N, N].
    x: tokens [B, N, D].
    read: unused, since all tokens are read.
    ctx: `Context`.

  Returns:
    `Delta` of [B, N, D].
  """
  del read
  q, k, v, stats = qkv(num_heads, key_dim, p, x, ctx)
  y = attend(attention_logits(q, k) + _biases(p, side), v)
  y, more = projected(p, y, ctx)
  return Delta(y, {**stats, **more})


def qkv(num_heads, key_dim, p, x, ctx):
  """Queries, keys and values of an encoder.

  Args:
    num_heads: H.
    key_dim: k, width of a query and of a key.
    p: the layer `qkv`.
    x: tokens [B, N, D].
    ctx: `Context`.

  Returns:
    (queries and keys [B, H, N, k], values [B, H, N, d], dict of new
    statistics).
  """
  y, stats = batch_norm.dense(p, 'qkv', x, ctx)
  # The columns of a head lie together: its query, key and value.
  y = split_heads(y, num_heads)
  return *jnp.split(y, (key_dim, 2 * key_dim), -1), stats


def projected(p, y, ctx):
  """Projects heads [B, H, Q, d] to ([B, Q, D], dict of new statistics)."""
  b, _, n, _ = y.shape
  y = y.transpose(0, 2, 1, 3).reshape(b, n, -1)
  return batch_norm.dense(p, 'proj', jax.nn.hard_swish(y), ctx)


def mlp(p, x, read, ctx):
  """The branch MLP: layers `fc1` and `fc2`; tokens [B, N, D] to `Delta`."""
  del read
  y, stats = batch_norm.dense(p, 'fc1', x, ctx)
  y, more = batch_norm.dense(p, 'fc2', jax.nn.hard_swish(y), ctx)
  return Delta(y, {**stats, **more})


def subsample(side, num_heads, key_dim, p, x, ctx):
  """Attention whose queries are every second token of every second row.

  Args:
    side: of the grid of tokens.
    num_heads: H.
    key_dim: k, width of a query and of a key.
    p: layers `kv`, `q` and `proj`; `table` [H, side^2], or folded `biases`
      [H, Q, N].
    x: tokens [B, N, F].
    ctx: `Context` with the statistics of these layers.

  Returns:
    (tokens [B, Q, D] with Q = ceil(side / 2)^2, dict of new statistics).
  """
  q, k, v, stats = q_and_kv(num_heads, key_dim, p, strided(x, side), x, ctx)
  y = attend(attention_logits(q, k) + _biases(p, side, STRIDE), v)
  y, more = projected(p, y, ctx)
  return y, {**stats, **more}


def q_and_kv(num_heads, key_dim, p, some, x, ctx):
  """Queries of some tokens, and keys and values of all, in the subsampling.

  Args:
    num_heads: H.
    key_dim: k, width of a query and of a key.
    p: layers `q` and `kv`.
    some: tokens [B, Q, F].
    x: tokens [B, N, F].
    ctx: `Context`.

  Returns:
    (queries [B, H, Q, k], keys [B, H, N, k], values [B, H, N, d], dict of new
    statistics).
  """
  y, stats = batch_norm.dense(p, 'kv', x, ctx)
  q, more = batch_norm.dense(p, 'q', some, ctx)
  k, v = jnp.split(split_heads(y, num_heads), (key_dim,), -1)
  return split_heads(q, num_heads), k, v, {**stats, **more}


def strided(x, side):
  """Every second token of every second row: [B, side^2, ...] to [B, Q, ...]."""
  grid = x.reshape(x.shape[0], side, side, *x.shape[2:])
  return grid[:, ::STRIDE, ::STRIDE].reshape(x.shape[0], -1, *x.shape[2:])


def _biases(p, side, stride=1):
  """What is added to the logits, [H, Q, N]."""
  return p['biases'] if 'biases' in p else gather(p['table'], side, stride)


def gather(table, side, stride=1):
  """Looks up the bias of each query and key.

  Args:
    table: [..., side^2], a bias for each distance in rows and columns.
    side: of the grid of keys.
    stride: every `stride`-th key of a row, and row, has a query.

  Returns:
    [..., Q, N].
  """
  return table[..., distances(side, stride)]


def distances(side, stride=1):
  """The place in a table of |rows apart| * side + |columns apart|, [Q, N]."""
  along = np.arange(side)
  apart = np.abs(along[::stride, None] - along)  # [queries, keys] of one axis
  rows, columns = apart[:, None, :, None], apart[None, :, None, :]
  return (rows * side + columns).reshape(len(apart)**2, side**2)


def attention_macs(n, width, num_heads, key_dim):
  """MACs of attention between `n` tokens, on one image."""
  value = VALUES * key_dim
  return (n * width * num_heads * (2 * key_dim + value)
          + num_heads * n * n * (key_dim + value)
          + n * num_heads * value * width)


def mlp_macs(n, width):
  """MACs of `mlp` on `n` tokens."""
  return 2 * n * width * MLP_RATIO * width


def subsample_macs(n, queries, width, width_out, num_heads, key_dim):
  """MACs of attention of some of `n` tokens to all, on one image."""
  value = VALUES_SUBSAMPLE * key_dim
  return (n * width * num_heads * (key_dim + value)
          + queries * width * num_heads * key_dim
          + num_heads * queries * n * (key_dim + value)
          + queries * num_heads * value * width_out)
