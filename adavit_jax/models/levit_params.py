"""The parameters of LeViT: their shapes, initialization and folding."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import batch_norm
from adavit_jax.models import levit_layers

# torch's default for linear and convolutional layers: uniform, with a third of
# the variance that keeps the scale of the input.
_KERNEL = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Group(NamedTuple):
  """The shapes of a group of layers, each with a BatchNorm behind it.

  Attributes:
    kernels: {name of a layer: shape of the kernel, without the leading axis}.
    num: L, number of stacked encoders, the leading axis; None for no such axis.
    others: {name: shape} of the parameters that belong to no layer and begin as
      zeros, such as the `table` of attention biases [H, side^2].
    stride: of the queries, see `levit_layers.gather`.
    zero: names of the layers whose BatchNorm begins with scale 0, so that a
      residual branch begins as 0.
  """
  kernels: dict[str, tuple[int, ...]]
  num: int | None = None
  others: dict[str, tuple[int, ...]] = {}
  stride: int = 1
  zero: tuple[str, ...] = ()

  @property
  def lead(self):
    """The leading axes of all leaves, () or (num,)."""
    return () if self.num is None else (self.num,)


def stem(channels):
  """`Group` of the stem; `channels` includes those of the image."""
  return Group({f'conv_{i}': (3, 3, *pair)
                for i, pair in enumerate(zip(channels, channels[1:]))})


def encoders(num, side, width, num_heads, key_dim):
  """`Group` of `num` encoders: `levit_layers.attention` and `mlp`."""
  value = num_heads * levit_layers.VALUES * key_dim
  qkv = 2 * num_heads * key_dim + value
  return Group(
      dict(qkv=(width, qkv), proj=(value, width), **_mlp(width)), num,
      _table(num_heads, side), zero=('proj', 'fc2'))


def mlp(width):
  """`Group` of one encoder that has only `levit_layers.mlp`."""
  return Group(_mlp(width), 1, zero=('fc2',))


def _mlp(width):
  hidden = levit_layers.MLP_RATIO * width
  return dict(fc1=(width, hidden), fc2=(hidden, width))


def subsample(side, width, width_out, num_heads, key_dim):
  """`Group` of `levit_layers.subsample`."""
  value = num_heads * levit_layers.VALUES_SUBSAMPLE * key_dim
  keys = num_heads * key_dim
  return Group(
      dict(kv=(width, keys + value), q=(width, keys), proj=(value, width_out)),
      others=_table(num_heads, side), stride=levit_layers.STRIDE)


def _table(num_heads, side):
  return dict(table=(num_heads, side**2))


def init(key, group):
  """Initializes a `Group`: (params, stats)."""
  params, stats = {}, {}
  keys = jax.random.split(key, len(group.kernels))
  for key, (name, shape) in zip(keys, group.kernels.items()):
    params[name], stats[name] = batch_norm.init((*group.lead, shape[-1]))
    if name in group.zero:
      params[name]['scale'] = jnp.zeros_like(params[name]['scale'])
    params[name]['kernel'] = _kernel(key, (*group.lead, *shape), group.num)
  for name, shape in group.others.items():
    params[name] = jnp.zeros((*group.lead, *shape))
  return params, stats


def _kernel(key, shape, num):
  if num is None:
    return _KERNEL(key, shape)
  init_one = lambda key: _KERNEL(key, shape[1:])
  return jax.vmap(init_one)(jax.random.split(key, num))


def init_head(key, width, num_classes):
  """Initializes a head: (linear layer, parameters of its BatchNorm, stats)."""
  kernel = nn.initializers.truncated_normal(0.02)(key, (width, num_classes))
  return dict(kernel=kernel, bias=jnp.zeros(num_classes)), *batch_norm.init(
      (width,))


def fold(group, params, stats):
  """Folds BatchNorm into the layers of a group, and looks up the biases.

  Args:
    group: `Group`.
    params: its parameters.
    stats: its statistics.

  Returns:
    dict with `kernel` and `bias` of each layer, the other parameters, and
    `biases` [..., H, Q, N] instead of a table.
  """
  folded = batch_norm.fold(params, stats)
  if 'table' in folded:
    table = folded.pop('table')
    folded['biases'] = levit_layers.gather(
        table, math.isqrt(table.shape[-1]), group.stride)
  return folded
