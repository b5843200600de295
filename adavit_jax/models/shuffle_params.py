"""The parameters of the Shuffle Transformer: initialization and folding.

An encoder is two blocks, with plain and with shuffled windows. Each has three
layers of `shuffle_layers`, named BLOCK_msa, BLOCK_local and BLOCK_mlp.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import batch_norm
from adavit_jax.models import depthwise
from adavit_jax.models import shuffle_layers
from adavit_jax.models import windows

BLOCKS = ('plain', 'shuffled')
_NORMAL = nn.initializers.truncated_normal(0.02)


def init_encoder(key, width, num_heads, window_size, kernel_size):
  """Initializes an encoder: (params, stats)."""
  params, stats = {}, {}
  hidden = shuffle_layers.MLP_RATIO * width
  keys = iter(jax.random.split(key, 6 * len(BLOCKS)))
  for block in BLOCKS:
    table = (num_heads, (2 * window_size - 1)**2)
    layers = dict(
        msa=dict(
            qkv=_layer(next(keys), width, 3 * width, bias=False),
            proj=_layer(next(keys), width, width),
            table=_NORMAL(next(keys), table)),
        local=dict(conv=_layer(
            next(keys), kernel_size, kernel_size, 1, width)),
        mlp=dict(fc1=_layer(next(keys), width, hidden),
                 fc2=_layer(next(keys), hidden, width)))
    for name, layer in layers.items():
      norm, norm_stats = batch_norm.init((width,))
      params[f'{block}_{name}'] = dict(layer, norm=norm)
      stats[f'{block}_{name}'] = dict(norm=norm_stats)
  return params, stats


def init_merge(key, width, width_out):
  """Initializes `shuffle_layers.merge`: (params, stats)."""
  norm, stats = batch_norm.init((width,))
  side = shuffle_layers.MERGED
  conv = _layer(key, side, side, width, width_out, bias=False)
  return dict(norm=norm, conv=conv), dict(norm=stats)


def init_stem(key, channels):
  """Initializes `shuffle_layers.embed`: (params, stats).

  Args:
    key: PRNG key.
    channels: of the image, and those that each convolution returns.
  """
  params, stats = {}, {}
  keys = iter(jax.random.split(key, len(channels)))
  for i, pair in enumerate(zip(channels, channels[1:])):
    params[f'conv_{i}'] = _layer(next(keys), 3, 3, *pair)
    params[f'norm_{i}'], stats[f'norm_{i}'] = batch_norm.init(pair[1:])
  params['proj'] = _layer(next(keys), channels[-1], channels[-1])
  return params, stats


def init_head(key, width, num_classes):
  """Initializes the linear head."""
  return _layer(key, width, num_classes)


def _layer(key, *shape, bias=True):
  layer = dict(kernel=_NORMAL(key, shape))
  return dict(layer, bias=jnp.zeros(shape[-1])) if bias else layer


def fold_encoder(side, window_size, params, stats):
  """Folds BatchNorm into an encoder, and looks up the biases of attention.

  Args:
    side: S, of the grid of tokens.
    window_size: side of a window.
    params: of one encoder.
    stats: its statistics.

  Returns:
    Layers without `norm`; those of attention have `biases` [H, n, n] instead of
    the table, and the bias of the convolution is [S, S, D]: BatchNorm does not
    shift the padding.
  """
  fold = dict(msa=batch_norm.fold_before, mlp=batch_norm.fold_before,
              local=functools.partial(_fold_local, side))
  folded = {}
  for block in BLOCKS:
    for layer, first in dict(msa='qkv', local='conv', mlp='fc1').items():
      name = f'{block}_{layer}'
      p = dict(params[name])
      p[first] = fold[layer](p[first], p.pop('norm'), stats[name]['norm'])
      if layer == 'msa':
        p['biases'] = windows.gather(p.pop('table'), window_size)
      folded[name] = p
  return folded


def _fold_local(side, conv, norm, stats):
  """Folds BatchNorm into the depthwise convolution behind it."""
  scale, bias = batch_norm.affine(norm, stats)
  shifts = bias * depthwise.tap_sums(conv['kernel'], side)
  return dict(kernel=conv['kernel'] * scale, bias=conv['bias'] + shifts)


def fold_merge(params, stats):
  """Folds BatchNorm into `shuffle_layers.merge`."""
  return dict(conv=batch_norm.fold_before(
      params['conv'], params['norm'], stats['norm']))


def fold_stem(params, stats):
  """Folds BatchNorm into `shuffle_layers.embed`."""
  folded = {name: p for name, p in params.items() if name not in stats}
  for name, s in stats.items():
    conv = name.replace('norm', 'conv')
    folded[conv] = batch_norm.fold_behind(params[conv], params[name], s)
  return folded
