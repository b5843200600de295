"""A backbone unlike ViT in everything, in one file.

Stacks on shrinking grids and growing widths, no class token, attention biases
from tables, BatchNorm, a convolution that always runs, bridges that halve the
grid, an MLP of the last one that may be dropped, and activations of two arrays:
tokens, and a summary that every MLP adds to.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import backbone


def norm(name, p, x, ctx):
  """BatchNorm over batch and tokens: (result, changed statistics)."""
  p, changed = p[name], {}
  if ctx.stats is None:  # folded
    return x * p['scale'] + p['bias'], changed
  stats = ctx.stats[name]
  if ctx.train:
    new = dict(mean=x.mean((0, 1)), var=x.var((0, 1)))
    changed = {name: {k: 0.9 * stats[k] + 0.1 * new[k] for k in new}}
    stats = new
  x = (x - stats['mean']) * jax.lax.rsqrt(stats['var'] + 1e-5)
  return x * p['scale'] + p['bias'], changed


def distances(side):
  """Index of the bias of each pair of tokens, [n, n], in a table of n."""
  row, column = np.divmod(np.arange(side * side), side)
  apart = lambda a: np.abs(a[:, None] - a[None])
  return apart(row) * side + apart(column)


def attention(side, p, x, read, ctx):
  """One head with a bias for each distance; folded, the biases are gathered."""
  y, changed = norm('norm1', p, x['x'], ctx)
  q, k, v = jnp.split(y @ p['qkv'], 3, -1)
  bias = p['bias'] if ctx.stats is None else p['bias'][distances(side)]
  weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / q.shape[-1]**0.5 + bias)
  return backbone.Delta({'x': weights @ v @ p['proj']}, changed)


def mlp(p, x, read, ctx):
  """Adds to the tokens, and the mean of its hidden units to the summary."""
  y, changed = norm('norm2', p, x['x'], ctx)
  y = jax.nn.relu(y @ p['fc1'])
  return backbone.Delta({'x': y @ p['fc2'], 'sum': y.mean(1)[:, :4]}, changed)


def local(side, p, x, read, ctx):
  """A 3x3 convolution, one filter for each channel; it always runs."""
  y, changed = norm('norm3', p, x['x'], ctx)
  d = y.shape[-1]
  y = jax.lax.conv_general_dilated(
      y.reshape(-1, side, side, d), p['filter'], (1, 1), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=d)
  return backbone.Delta({'x': y.reshape(-1, side * side, d)}, changed)


def halve(i, side, p, x, images, ctx):
  """Joins 2 x 2 tokens to one."""
  b, _, d = x['x'].shape
  y = x['x'].reshape(b, side // 2, 2, side // 2, 2, d).swapaxes(2, 3)
  return {**x, 'x': y.reshape(b, -1, 4 * d) @ p[f'halve_{i}']}, {}


class Stranger(backbone.Backbone):
  """Attributes: widths D of the stacks, their depths."""
  widths: tuple[int, ...] = (8, 12)
  depths: tuple[int, ...] = (1, 3)

  def init_variables(self, key):
    keys = iter(jax.random.split(key, 99))
    random = lambda *shape: jax.random.normal(next(keys), shape) / 4
    params, stats = {'embed': random(self.channels, self.widths[0])}, {}
    params['head'] = random(self.widths[-1] + 4, self.num_classes)
    for i, (d, num) in enumerate(zip(self.widths, self.depths)):
      norms = dict(scale=jnp.ones((num, d)), bias=jnp.zeros((num, d)))
      params[f'stack_{i}'] = dict(
          norm1=norms, qkv=random(num, d, 3 * d), proj=random(num, d, d),
          bias=random(num, (self.image_size >> i)**2), norm2=norms,
          fc1=random(num, d, 2 * d), fc2=random(num, 2 * d, d), norm3=norms,
          filter=random(num, 3, 3, 1, d))
      stats[f'stack_{i}'] = {
          name: dict(mean=jnp.zeros((num, d)), var=jnp.ones((num, d)))
          for name in ('norm1', 'norm2', 'norm3')}
      if i:
        params[f'halve_{i}'] = random(4 * self.widths[i - 1], d)
    return params, stats

  def embed(self, params, images, ctx):
    x = images.reshape(images.shape[0], -1, self.channels) @ params['embed']
    return {'x': x, 'sum': jnp.zeros((x.shape[0], 4))}, {}

  def plan(self):
    items = []
    for i, (d, num) in enumerate(zip(self.widths, self.depths)):
      side = self.image_size >> i
      n = side * side
      at = backbone.Tokens(d, n, grid=(side, side), mlp_dim=2 * d)
      on = lambda function, side=side: functools.partial(function, side)
      msa = backbone.Branch(
          'msa', on(attention), 4 * n * d * d + 2 * n * n * d)
      conv = backbone.Branch('', on(local), 9 * n * d)
      last = backbone.Branch('mlp', mlp, 4 * n * d * d)
      if i:
        run = functools.partial(halve, i, 2 * side)
        macs = n * 4 * self.widths[i - 1] * d
        items.append(backbone.Bridge(run, macs, (f'halve_{i}',)))
      if alone := i == len(self.widths) - 1:  # an MLP of the last bridge
        items.append(backbone.Stack(f'stack_{i}', 0, 1, (last,), at))
      items.append(backbone.Stack(
          f'stack_{i}', alone, num - alone, (msa, conv, last), at))
    return tuple(items)

  def own_exits(self):
    macs = (self.widths[-1] + 4) * self.num_classes
    return backbone.OwnExit(sum(self.depths), macs, ('head',)),

  def classify(self, params, x, index, ctx):
    y = jnp.concatenate([x['x'].mean(1), x['sum']], -1)
    return backbone.Logits(y @ params['head']), {}

  @property
  def embed_macs(self):
    return self.image_size**2 * self.channels * self.widths[0]

  def tokens(self, x, at):
    return x['x']

  def fold(self, params, stats):
    folded = dict(params)
    for group, norms in stats.items():
      p = folded[group] = dict(params[group])
      for name, s in norms.items():
        scale = p[name]['scale'] * jax.lax.rsqrt(s['var'] + 1e-5)
        p[name] = dict(scale=scale, bias=p[name]['bias'] - s['mean'] * scale)
      side = round(p['bias'].shape[-1]**0.5)
      p['bias'] = p['bias'][:, distances(side)]
    return folded


MODELS = {'stranger_8': dict(image_size=8, num_classes=10, channels=1)}
