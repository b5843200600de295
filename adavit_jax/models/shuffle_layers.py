"""The layers of the Shuffle Transformer: windows, convolutions, MLP.

Pure functions on arrays. A layer reads through a BatchNorm, whose parameters
are `norm`; see `batch_norm.before`. Each returns what it computes and the new
statistics {'norm': ...}, {} unless in training.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models import batch_norm
from adavit_jax.models import depthwise
from adavit_jax.models import windows
from adavit_jax.models.encoder import attend
from adavit_jax.models.encoder import attention_logits
from adavit_jax.models.encoder import split_heads

MLP_RATIO = 4
MERGED = 2  # side of the patches that become one token


def embed(strides, p, images, ctx):
  """Convolutions of 3x3 pixels, and a linear layer.

  Args:
    strides: of the convolutions.
    p: `conv_0`, `norm_0` behind it, `conv_1`, ..., and `proj`.
    images: [B, S, S, C], in the compute dtype.
    ctx: `Context` with the statistics of these layers.

  Returns:
    (tokens [B, N, D], {name: new statistics}).
  """
  x, new = images, {}
  for i, stride in enumerate(strides):
    x = _conv(p[f'conv_{i}'], x, stride, padding=1)
    name = f'norm_{i}'
    if ctx.stats is not None:
      x, stats = batch_norm.norm(p[name], x, ctx.stats[name], ctx.train)
      new |= {name: stats} if ctx.train else {}
    x = jax.nn.relu6(x)
  x = x.reshape(x.shape[0], -1, x.shape[-1])
  return _dense(p['proj'], x), new


def attention(side, size, num_heads, shuffled, p, x, ctx):
  """Attention within windows.

  Args:
    side: of the grid of tokens.
    size: side of a window.
    num_heads: H.
    shuffled: see `windows.split`.
    p: `norm`, `qkv` without bias, `proj`; `table` [H, (2 * size - 1)^2], or
      folded `biases` [H, n, n] for the n tokens of a window.
    x: tokens [B, N, D].
    ctx: `Context` with the statistics of the layer.

  Returns:
    ([B, N, D], new statistics).
  """
  y, stats = batch_norm.before(p, x, ctx)
  y = _dense(p['qkv'], windows.split(y, side, size, shuffled))
  q, k, v = (split_heads(part, num_heads) for part in jnp.split(y, 3, -1))
  biases = p['biases'] if 'biases' in p else windows.gather(p['table'], size)
  y = attend(attention_logits(q, k) + biases, v)  # [B * W, H, n, d]
  y = y.transpose(0, 2, 1, 3).reshape(-1, size**2, x.shape[-1])
  return windows.join(_dense(p['proj'], y), side, size, shuffled), stats


def local(side, p, x, ctx):
  """A depthwise convolution, which connects neighboring windows.

  Args:
    side: S, of the grid of tokens.
    p: `norm`, and `conv` with a `bias` [D], folded [S, S, D].
    x: tokens [B, N, D].
    ctx: `Context` with the statistics of the layer.

  Returns:
    ([B, N, D], new statistics).
  """
  y, stats = batch_norm.before(p, x, ctx)
  y = depthwise.convolve(
      y.reshape(-1, side, side, x.shape[-1]), p['conv']['kernel'])
  y = y + p['conv']['bias'].astype(y.dtype)
  return y.reshape(x.shape), stats


def mlp(p, x, ctx):
  """`norm`, `fc1`, ReLU6 and `fc2`: tokens [B, N, D], as in `attention`."""
  y, stats = batch_norm.before(p, x, ctx)
  return _dense(p['fc2'], jax.nn.relu6(_dense(p['fc1'], y))), stats


def merge(side, p, x, ctx):
  """Joins 2 x 2 tokens to one.

  Args:
    side: of the grid of tokens.
    p: `norm`, and `conv` without bias.
    x: tokens [B, N, F].
    ctx: `Context` with the statistics of the layer.

  Returns:
    ([B, N / 4, D], new statistics).
  """
  y, stats = batch_norm.before(p, x, ctx)
  y = _conv(p['conv'], y.reshape(-1, side, side, x.shape[-1]), MERGED)
  return y.reshape(x.shape[0], -1, y.shape[-1]), stats


def _conv(p, x, stride, padding=0):
  y = jax.lax.conv_general_dilated(
      x, p['kernel'].astype(x.dtype), (stride, stride), [(padding,) * 2] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return _biased(p, y)


def _dense(p, x):
  # XLA's CPU backend is faster on two-dimensional matmuls.
  y = x.reshape(-1, x.shape[-1]) @ p['kernel'].astype(x.dtype)
  return _biased(p, y).reshape(*x.shape[:-1], -1)


def _biased(p, y):
  return y + p['bias'].astype(y.dtype) if 'bias' in p else y


def attention_macs(side, size, width):
  """MACs of `attention` on one image."""
  return side**2 * (4 * width + 2 * size**2) * width


def local_macs(side, kernel_size, width):
  """MACs of `local` on one image, those with padding included."""
  return side**2 * kernel_size**2 * width


def mlp_macs(side, width):
  """MACs of `mlp` on one image."""
  return 2 * side**2 * width * MLP_RATIO * width


def merge_macs(side, width, width_out):
  """MACs of `merge` on one image."""
  return side**2 * width * width_out
