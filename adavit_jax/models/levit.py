"""LeViT (Graham et al., 2021, arXiv:2104.01136): attention on smaller grids."""

import functools
import math

import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import batch_norm
from adavit_jax.models import levit_layers as layers
from adavit_jax.models import levit_params


class LeViT(backbone.Backbone):
  """Stages of encoders on grids that halve, without class token.

  A convolutional stem makes the tokens of the first stage. Between two stages,
  attention subsamples the grid, and a residual MLP follows: a stack of one
  encoder that has no MSA. Each head reads the mean over the tokens, through a
  BatchNorm of its own.

  Attributes:
    patch_size: total stride of the stem, a power of two; divides `image_size`.
    widths: D of each stage.
    depths: number of encoders of each stage.
    heads: H of each stage. The subsampling behind it has D // `key_dim`.
    key_dim: width of the query and key of a head. Values are twice as wide,
      and four times in the subsampling.
    distillation: whether to add the second head, for distillation.
  """
  patch_size: int
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  key_dim: int
  distillation: bool = True

  @property
  def num_stages(self):
    return len(self.widths)

  @property
  def head_names(self):
    """Names of the heads' parameters; NAME_norm is the BatchNorm of a head."""
    return ('head', 'head_dist')[:1 + self.distillation]

  @property
  def aux_names(self):
    """The same of heads that only training uses."""
    return ()

  def side(self, stage):
    """Side of the grid of tokens in a stage."""
    side = self.image_size // self.patch_size
    for _ in range(stage):
      side = -(-side // layers.STRIDE)
    return side

  def num_subsampling_heads(self, stage):
    """H of the subsampling behind a stage."""
    return self.widths[stage] // self.key_dim

  def at(self, stage):
    """`Tokens` in a stage."""
    side, width = self.side(stage), self.widths[stage]
    # The exit head 'vit' splits the width evenly.
    num_heads = next(num for num in range(self.heads[stage], 0, -1)
                     if width % num == 0)
    return backbone.Tokens(width, side * side, 0, (side, side), num_heads,
                           layers.MLP_RATIO * width)

  def groups(self):
    """{name: `levit_params.Group`} of all parameters but the heads."""
    k = self.key_dim
    steps = int(math.log2(self.patch_size))
    channels = [self.widths[0] >> i for i in reversed(range(steps))]
    groups = {'stem': levit_params.stem((self.channels, *channels))}
    for i, width in enumerate(self.widths):
      side = self.side(i)
      if i:
        groups[f'mlp_{i}'] = levit_params.mlp(width)
      groups[f'encoders_{i}'] = levit_params.encoders(
          self.depths[i], side, width, self.heads[i], k)
      if i + 1 < self.num_stages:
        groups[f'subsample_{i + 1}'] = levit_params.subsample(
            side, width, self.widths[i + 1], self.num_subsampling_heads(i), k)
    return groups

  def init_variables(self, key):
    params, stats = {}, {}
    groups, heads = self.groups(), (*self.head_names, *self.aux_names)
    keys = iter(jax.random.split(key, len(groups) + len(heads)))
    for name, group in groups.items():
      params[name], stats[name] = levit_params.init(next(keys), group)
    for name in heads:
      norm = f'{name}_norm'
      params[name], params[norm], stats[norm] = levit_params.init_head(
          next(keys), self.widths[-1], self.num_classes)
    return params, stats

  def fold(self, params, stats):
    folded = {name: levit_params.fold(group, params[name], stats[name])
              for name, group in self.groups().items()}
    for name in self.head_names:
      norm = f'{name}_norm'
      folded[name] = batch_norm.fold_before(
          params[name], params[norm], stats[norm])
    return folded

  def embed(self, params, images, ctx):
    x, stats = images.astype(self.dtype), {}
    ctx = batch_norm.within(ctx, 'stem')
    for i, name in enumerate(self.groups()['stem'].kernels):
      if i:
        x = jax.nn.hard_swish(x)
      x, changed = batch_norm.conv(params['stem'], name, x, ctx)
      stats.update(changed)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return x, batch_norm.changed('stem', stats)

  def plan(self):
    k, items = self.key_dim, []
    for i, (width, depth, heads) in enumerate(
        zip(self.widths, self.depths, self.heads)):
      at, n = self.at(i), self.at(i).num
      mlp = backbone.Branch('mlp', layers.mlp, layers.mlp_macs(n, width))
      msa = backbone.Branch(
          'msa', functools.partial(layers.attention, self.side(i), heads, k),
          layers.attention_macs(n, width, heads, k))
      if i:
        items += [self._bridge(i),
                  backbone.Stack(f'mlp_{i}', 0, 1, (mlp,), at)]
      items.append(backbone.Stack(f'encoders_{i}', 0, depth, (msa, mlp), at))
    return tuple(items)

  def _bridge(self, stage):
    """The subsampling before a stage."""
    group, side = f'subsample_{stage}', self.side(stage - 1)
    heads = self.num_subsampling_heads(stage - 1)
    def run(params, x, images, ctx):
      del images
      x, stats = layers.subsample(
          side, heads, self.key_dim, params[group], x,
          batch_norm.within(ctx, group))
      return x, batch_norm.changed(group, stats)
    return backbone.Bridge(run, self.subsample_macs(stage), (group,))

  def subsample_macs(self, stage):
    """MACs of the subsampling before a stage, on one image."""
    return layers.subsample_macs(
        self.at(stage - 1).num, self.at(stage).num,
        *self.widths[stage - 1:stage + 1],
        self.num_subsampling_heads(stage - 1), self.key_dim)

  def own_exits(self):
    names = *self.head_names, *self.aux_names
    place = sum(self.depths) + self.num_stages - 1
    return backbone.OwnExit(
        place, len(self.head_names) * self.widths[-1] * self.num_classes,
        (*names, *(f'{name}_norm' for name in names))),

  def classify(self, params, x, index, ctx):
    del index
    return self._answers(
        self.head_names, params, x.astype(jnp.float32).mean(1), ctx)

  def _answers(self, names, params, x, ctx):
    """Applies heads to [B, D] float32: (`Logits`, new statistics)."""
    logits, stats = [], {}
    for name in names:
      y, norm = x, f'{name}_norm'
      if ctx.stats is not None:
        y, changed = batch_norm.norm(
            params[norm], x, ctx.stats[norm], ctx.train)
        stats[norm] = changed
      logits.append(y @ params[name]['kernel'] + params[name]['bias'])
    return backbone.Logits(*logits), stats if ctx.train else {}

  @property
  def embed_macs(self):
    macs, side = 0, self.image_size
    for kernel in self.groups()['stem'].kernels.values():
      side //= 2
      macs += side * side * math.prod(kernel)
    return macs

  def check(self):
    super().check()
    backbone.check_counts(self, 'patch_size', 'key_dim')
    backbone.check_stages(self, 'widths', 'depths', 'heads')
    if self.patch_size < 2 or not math.log2(self.patch_size).is_integer():
      raise ValueError(f'patch_size={self.patch_size} must be a power of two, '
                       f'since the convolutions of the stem have stride 2')
    if self.image_size % self.patch_size:
      raise ValueError(f'patch_size={self.patch_size} does not divide '
                       f'image_size={self.image_size}')
    if 2 * self.widths[0] < self.patch_size:
      raise ValueError(f'widths={self.widths}: the first is too small for the '
                       f'stem, which begins with {self.widths[0]} / '
                       f'{self.patch_size // 2} channels')
    for width in self.widths[:-1]:
      if width < self.key_dim:
        raise ValueError(f'key_dim={self.key_dim} is larger than a width of '
                         f'widths={self.widths}: the subsampling behind it '
                         f'would have no heads')
    if not isinstance(self.distillation, bool):
      raise ValueError(f'distillation={self.distillation!r} must be True or '
                       f'False')


def _imagenet(key_dim, widths, depths, heads):
  return dict(image_size=224, patch_size=16, num_classes=1000, widths=widths,
              depths=depths, heads=heads, key_dim=key_dim)


# With timm's names.
MODELS = {
    'levit_cifar_32': dict(
        image_size=32, patch_size=4, num_classes=10, widths=(64, 128, 192),
        depths=(4, 4, 4), heads=(2, 4, 6), key_dim=16, distillation=False),
    'levit_128s': _imagenet(16, (128, 256, 384), (2, 3, 4), (4, 6, 8)),
    'levit_128': _imagenet(16, (128, 256, 384), (4, 4, 4), (4, 8, 12)),
    'levit_192': _imagenet(32, (192, 288, 384), (4, 4, 4), (3, 5, 6)),
    'levit_256': _imagenet(32, (256, 384, 512), (4, 4, 4), (4, 6, 8)),
    'levit_384': _imagenet(32, (384, 512, 768), (4, 4, 4), (6, 9, 12)),
}
