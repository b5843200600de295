"""Shuffle Transformer (Huang et al., 2021, arXiv:2106.03650)."""

import functools

import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import batch_norm
from adavit_jax.models import shuffle_layers as layers
from adavit_jax.models import shuffle_params

_STRIDES = {2: (2, 1), 4: (2, 2)}  # of the stem, by its total stride


class ShuffleTransformer(backbone.Backbone):
  """Stages of windowed attention on grids that halve, without class token.

  Blocks come in pairs: attention in windows of adjacent tokens, then in windows
  of tokens that are spread over the grid. In both, a depthwise convolution,
  which always runs, follows the attention and connects neighboring windows. An
  encoder is such a pair, with two MSA and two MLP layers. Between two stages, 2
  x 2 tokens are merged. The head reads the mean over the tokens.

  Attributes:
    patch_size: total stride of the stem, 2 or 4.
    widths: D of each stage.
    depths: number of blocks of each stage, even.
    heads: H of each stage; divides D.
    window_size: side of a window in tokens; divides the side of every grid.
    kernel_size: side of the depthwise convolutions in tokens, odd.
    stem_width: channels between the two convolutions of the stem.
  """
  patch_size: int
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window_size: int = 7
  kernel_size: int = 7
  stem_width: int = 32

  @property
  def num_stages(self):
    return len(self.widths)

  def side(self, stage):
    """Side of the grid of tokens in a stage."""
    return self.image_size // self.patch_size // layers.MERGED**stage

  def at(self, stage):
    """`Tokens` in a stage."""
    side, width = self.side(stage), self.widths[stage]
    return backbone.Tokens(width, side * side, 0, (side, side),
                           self.heads[stage], layers.MLP_RATIO * width)

  def init_variables(self, key):
    params, stats = {}, {}
    keys = iter(jax.random.split(key, 2 * self.num_stages + 1))
    channels = (self.channels, self.stem_width, self.widths[0])
    params['stem'], stats['stem'] = shuffle_params.init_stem(
        next(keys), channels)
    for i, (width, depth, heads) in enumerate(
        zip(self.widths, self.depths, self.heads)):
      if i:
        name = f'merge_{i}'
        params[name], stats[name] = shuffle_params.init_merge(
            next(keys), self.widths[i - 1], width)
      init = lambda key: shuffle_params.init_encoder(
          key, width, heads, self.window_size, self.kernel_size)
      name = f'encoders_{i}'
      params[name], stats[name] = jax.vmap(init)(
          jax.random.split(next(keys), depth // 2))
    params['head'] = shuffle_params.init_head(
        next(keys), self.widths[-1], self.num_classes)
    return params, stats

  def fold(self, params, stats):
    folded = dict(params, stem=shuffle_params.fold_stem(
        params['stem'], stats['stem']))
    for i in range(self.num_stages):
      if i:
        name = f'merge_{i}'
        folded[name] = shuffle_params.fold_merge(params[name], stats[name])
      name = f'encoders_{i}'
      folded[name] = jax.vmap(functools.partial(
          shuffle_params.fold_encoder, self.side(i), self.window_size))(
              params[name], stats[name])
    return folded

  def embed(self, params, images, ctx):
    x, stats = layers.embed(
        _STRIDES[self.patch_size], params['stem'], images.astype(self.dtype),
        batch_norm.within(ctx, 'stem'))
    return x, batch_norm.changed('stem', stats)

  def plan(self):
    items = []
    for i, depth in enumerate(self.depths):
      if i:
        items.append(self._bridge(i))
      items.append(backbone.Stack(
          f'encoders_{i}', 0, depth // 2, self._branches(i), self.at(i)))
    return tuple(items)

  def _branches(self, stage):
    side, size, width = self.side(stage), self.window_size, self.widths[stage]
    found = []
    for block in shuffle_params.BLOCKS:
      msa = functools.partial(layers.attention, side, size, self.heads[stage],
                              block == 'shuffled')
      found += [
          _branch('msa', f'{block}_msa', msa,
                  layers.attention_macs(side, size, width)),
          _branch('', f'{block}_local', functools.partial(layers.local, side),
                  layers.local_macs(side, self.kernel_size, width)),
          _branch('mlp', f'{block}_mlp', layers.mlp,
                  layers.mlp_macs(side, width))]
    return tuple(found)

  def _bridge(self, stage):
    """The merging before a stage."""
    name, side = f'merge_{stage}', self.side(stage - 1)
    def run(params, x, images, ctx):
      del images
      x, stats = layers.merge(
          side, params[name], x, batch_norm.within(ctx, name))
      return x, batch_norm.changed(name, stats)
    macs = layers.merge_macs(side, *self.widths[stage - 1:stage + 1])
    return backbone.Bridge(run, macs, (name,))

  def own_exits(self):
    return backbone.OwnExit(
        sum(depth // 2 for depth in self.depths),
        self.widths[-1] * self.num_classes, ('head',)),

  def classify(self, params, x, index, ctx):
    del index, ctx
    p = params['head']
    x = x.astype(jnp.float32).mean(1)
    return backbone.Logits(x @ p['kernel'] + p['bias']), {}

  @property
  def embed_macs(self):
    first = self.image_size // _STRIDES[self.patch_size][0]
    side, width = self.side(0), self.widths[0]
    return (first**2 * 9 * self.channels * self.stem_width
            + side**2 * (9 * self.stem_width + width) * width)

  def check(self):
    super().check()
    backbone.check_counts(self, 'window_size', 'kernel_size', 'stem_width')
    backbone.check_stages(self, 'widths', 'depths', 'heads')
    if self.patch_size not in _STRIDES:
      raise ValueError(f'patch_size={self.patch_size!r} must be one of '
                       f'{tuple(_STRIDES)}, the total strides of the stem')
    if any(depth % 2 for depth in self.depths):
      raise ValueError(f'depths={self.depths} must be even: blocks with plain '
                       f'and with shuffled windows alternate')
    for width, heads in zip(self.widths, self.heads):
      if width % heads:
        raise ValueError(f'heads={self.heads}: {heads} does not divide {width} '
                         f'of widths={self.widths}')
    if self.kernel_size % 2 == 0:
      raise ValueError(f'kernel_size={self.kernel_size} must be odd')
    smallest = (self.patch_size * self.window_size
                * layers.MERGED**(self.num_stages - 1))
    if self.image_size % smallest:
      raise ValueError(
          f'image_size={self.image_size} must be a multiple of {smallest}, so '
          f'that window_size={self.window_size} divides the grids of all '
          f'{self.num_stages} stages behind patch_size={self.patch_size}')


def _branch(kind, name, layer, macs):
  """The branch of one layer, whose parameters are `name` of an encoder."""
  def run(params, x, read, ctx):
    del read
    y, stats = layer(params[name], x, batch_norm.within(ctx, name))
    return backbone.Delta(y, batch_norm.changed(name, stats))
  return backbone.Branch(kind, run, macs)


def _imagenet(width, depths):
  widths = tuple(width << i for i in range(4))
  return dict(image_size=224, patch_size=4, num_classes=1000, widths=widths,
              depths=depths, heads=tuple(d // 32 for d in widths))


MODELS = {
    'shuffle_cifar_32': dict(
        image_size=32, patch_size=2, num_classes=10, widths=(32, 64, 128),
        depths=(2, 4, 4), heads=(2, 4, 8), window_size=4, kernel_size=3,
        stem_width=16),
    'shuffle_tiny_224': _imagenet(96, (2, 2, 6, 2)),
    'shuffle_small_224': _imagenet(96, (2, 2, 18, 2)),
    'shuffle_base_224': _imagenet(128, (2, 2, 18, 2)),
}
