"""BatchNorm as pure functions, for backbones that own their parameters.

A layer with BatchNorm behind it is a dict: `kernel` of a matrix product or a
convolution without bias, and `scale` and `bias` of the BatchNorm. Folding the
running statistics into it leaves a `kernel` and a `bias`. BatchNorm in front of
a layer has parameters of its own, and is folded into that layer.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-5
MOMENTUM = 0.9  # of the running statistics; torch calls this 0.1


def init(shape):
  """The parameters and statistics of BatchNorm over features of a shape."""
  ones, zeros = jnp.ones(shape), jnp.zeros(shape)
  return dict(scale=ones, bias=zeros), dict(mean=zeros, var=ones)


def norm(p, x, stats, train):
  """Normalizes over all axes but the last.

  Args:
    p: dict of `scale` [D] and `bias` [D].
    x: [..., D].
    stats: dict of the running `mean` [D] and `var` [D].
    train: use the statistics of the batch, over all devices, and update the
      running ones. Their variance is the biased one, as in Flax.

  Returns:
    ([..., D] in the dtype of x, dict of the new statistics).
  """
  y = x.astype(jnp.float32)
  now = stats
  if train:
    axes = tuple(range(y.ndim - 1))
    now = dict(mean=y.mean(axes), var=y.var(axes))
    stats = {name: MOMENTUM * stats[name] + (1 - MOMENTUM) * now[name]
             for name in now}
  y = (y - now['mean']) * (p['scale'] * jax.lax.rsqrt(now['var'] + EPSILON))
  return (y + p['bias']).astype(x.dtype), stats


def before(params, x, ctx):
  """Normalizes what a layer reads, unless this is folded into the layer.

  Args:
    params: dict of layers and of the BatchNorm before them, `norm`.
    x: [..., D].
    ctx: `Context` with the statistics of these layers.

  Returns:
    ([..., D], {'norm': new statistics}; {} unless in training).
  """
  if ctx.stats is None:
    return x, {}
  y, stats = norm(params['norm'], x, ctx.stats['norm'], ctx.train)
  return y, changed('norm', stats if ctx.train else {})


def within(ctx, name):
  """Returns the context with the statistics under one name alone."""
  return ctx if ctx.stats is None else ctx._replace(stats=ctx.stats[name])


def changed(name, stats):
  """Returns new statistics under a name, {} if there are none."""
  return {name: stats} if stats else {}


def dense(params, name, x, ctx):
  """A matrix product and its BatchNorm, or both folded.

  Args:
    params: dict of layers.
    name: of the layer.
    x: [B, N, F], in the compute dtype.
    ctx: `Context` with the statistics of these layers.

  Returns:
    ([B, N, D], {name: new statistics}; {} unless in training).
  """
  kernel = params[name]['kernel'].astype(x.dtype)
  # XLA's CPU backend is faster on two-dimensional matmuls.
  y = x.reshape(-1, x.shape[-1]) @ kernel
  return _after(params, name, y.reshape(*x.shape[:-1], -1), ctx)


def conv(params, name, x, ctx):
  """A 3x3 convolution of stride 2 and its BatchNorm, or both folded.

  Args:
    params: dict of layers.
    name: of the layer.
    x: [B, S, S, F], in the compute dtype.
    ctx: `Context` with the statistics of these layers.

  Returns:
    ([B, S / 2, S / 2, D], {name: new statistics}; {} unless in training).
  """
  # Symmetric padding as in torch; 'SAME' would pad the end alone.
  y = jax.lax.conv_general_dilated(
      x, params[name]['kernel'].astype(x.dtype), (2, 2), ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return _after(params, name, y, ctx)


def _after(params, name, y, ctx):
  if ctx.stats is None:
    return y + params[name]['bias'].astype(y.dtype), {}
  y, stats = norm(params[name], y, ctx.stats[name], ctx.train)
  return y, changed(name, stats if ctx.train else {})


def fold(params, stats):
  """Folds the statistics into the layers that have some.

  Args:
    params: dict of layers, with or without a leading axis of encoders, and of
      other parameters.
    stats: {name of a layer: dict of `mean` and `var`}.

  Returns:
    A dict like `params`; folded layers have a `kernel` and a `bias`.
  """
  folded = dict(params)
  for name, s in stats.items():
    p = params[name]
    folded[name] = fold_behind(dict(kernel=p['kernel']), p, s)
  return folded


def fold_behind(layer, p, stats):
  """Folds BatchNorm into the layer before it.

  Args:
    layer: dict of `kernel` [..., K] and, if it has one, `bias` [K].
    p: dict of `scale` [K] and `bias` [K].
    stats: dict of `mean` [K] and `var` [K].

  Returns:
    dict of `kernel` and `bias`.
  """
  scale, bias = affine(p, stats)
  return dict(kernel=layer['kernel'] * scale[..., None, :],
              bias=bias + scale * layer.get('bias', 0))


def fold_before(layer, p, stats):
  """Folds BatchNorm into the layer behind it.

  Args:
    layer: dict of `kernel`, [D, K], or [h, w, D, K] of a convolution without
      padding, and, if it has one, `bias` [K].
    p: dict of `scale` [D] and `bias` [D].
    stats: dict of `mean` [D] and `var` [D].

  Returns:
    dict of `kernel` and `bias`.
  """
  scale, bias = affine(p, stats)
  kernel = layer['kernel']
  taps = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
  added = jnp.matmul(bias, taps, precision='highest')
  return dict(kernel=kernel * scale[:, None],
              bias=added + layer.get('bias', 0))


def affine(p, stats):
  """The map x * scale + bias that BatchNorm is at inference."""
  scale = p['scale'] * jax.lax.rsqrt(stats['var'] + EPSILON)
  return scale, p['bias'] - stats['mean'] * scale
