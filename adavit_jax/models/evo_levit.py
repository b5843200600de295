"""Evo-LeViT (Xu et al., 2022, arXiv:2108.01390): LeViT on selected tokens."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import batch_norm
from adavit_jax.models import evo_levit_layers as layers
from adavit_jax.models import levit
from adavit_jax.models import levit_layers
from adavit_jax.models import token_selection


class EvoLeViT(levit.LeViT):
  """LeViT whose encoders run on a part of the patches.

  There is a class token, and positions take the place of attention biases. Each
  attention scores the patches by the attention of the class token to them. A
  stage runs on the patches with the highest scores. One token stands for the
  others, and what it gains is added to them. Before the next stage, all tokens
  are in raster order again.

  The heads read the mean over the patches. In training, heads of their own read
  the class token, see `Logits.aux`.

  Attributes:
    keep_ratio: share of the T patches of a stage that its encoders run on, K =
      int(T * keep_ratio); 1 for all.
    num_full: number of encoders of the first stage before the first selection,
      at least 1.
    layerwise: share of the steps of a phase with `Context.progress` in which
      tokens are selected before every encoder instead of once per stage; 1 for
      always, including inference. Old and new scores then have equal weights,
      and learned ones otherwise.
  """
  unsaved = ('keep_ratio', 'layerwise')
  keep_ratio: float = 0.5
  num_full: int = 2
  layerwise: float = 0.

  @property
  def aux_names(self):
    return ('head_cls', 'head_cls_dist')[:1 + self.distillation]

  def kept(self, stage):
    """K, number of patches that the encoders of a stage run on."""
    return int(self.side(stage)**2 * self.keep_ratio)

  def at(self, stage):
    """`Tokens` in a stage, of all tokens."""
    at = super().at(stage)
    return at._replace(num=1 + at.num, prefix=1)

  def groups(self):
    groups = {}
    for name, group in super().groups().items():
      kind, *stage = name.split('_')
      others = {}
      if kind in ('encoders', 'subsample'):
        others = dict(tradeoff=(1,))
      if kind == 'subsample':
        others['pos_embedding'] = self._positions(int(stage[0]) - 1)
      groups[name] = group._replace(others=others)
    return groups

  def _positions(self, stage):
    """The shape of the position embedding of all tokens of a stage."""
    return 1, self.at(stage).num, self.widths[stage]

  def init_variables(self, key):
    key, own_key = jax.random.split(key)
    params, stats = super().init_variables(key)
    normal = nn.initializers.truncated_normal(0.02)
    keys = jax.random.split(own_key, self.num_stages)
    params['cls'] = jnp.zeros((1, 1, self.widths[0]))
    params['pos_embedding'] = normal(keys[0], self._positions(0))
    for i in range(1, self.num_stages):
      params[f'subsample_{i}']['pos_embedding'] = normal(
          keys[i], self._positions(i - 1))
    return params, stats

  def fold(self, params, stats):
    return {**super().fold(params, stats),
            **{name: params[name] for name in ('cls', 'pos_embedding')}}

  def embed(self, params, images, ctx):
    x, stats = super().embed(params, images, ctx)
    cls = jnp.broadcast_to(params['cls'], (x.shape[0], 1, x.shape[-1]))
    tokens = jnp.concatenate([cls.astype(x.dtype), x], 1)
    scores = jnp.zeros(x.shape[:2], jnp.float32)
    return dict(tokens=tokens + params['pos_embedding'].astype(x.dtype),
                scores=scores), stats

  def plan(self):
    items = []
    for i, depth in enumerate(self.depths):
      if i:
        items += [self._bridge(i), self._stack(i, f'mlp_{i}', 0, 1)]
      full = 0 if i else min(self.num_full, depth)
      if self.kept(i) == self.side(i)**2:
        full = depth
      if full:
        items.append(self._stack(i, f'encoders_{i}', 0, full))
      items += self._selected(i, full)
    return tuple(items)

  def _selected(self, stage, start):
    """The encoders of a stage from `start` on, with their selections."""
    stop = self.depths[stage]
    step = 1 if self.layerwise else max(stop - start, 1)
    items = []
    for row in range(start, stop, step):
      items += [self._selection(stage, row == start),
                self._stack(stage, f'encoders_{stage}', row, step, True)]
    return items

  def _selection(self, stage, first):
    """The bridge that selects tokens; it always does if it begins a stage."""
    num = self.kept(stage)
    def again(x):
      return layers.select(layers.restore(x), num)
    def run(params, x, images, ctx):
      del params, images
      selects = first or token_selection.reselects(self.layerwise, ctx)
      return token_selection.select_if(selects, again, lambda x: x, x), {}
    return backbone.Bridge(run, 0)

  def _stack(self, stage, group, start, length, selected=False):
    """Encoders of a stage on all tokens, or on selected ones."""
    at, k, heads = self.at(stage), self.key_dim, self.heads[stage]
    if selected:
      # The class token and the representative one; in no order of a grid.
      at = at._replace(num=self.kept(stage) + 2, grid=None)
    branches = backbone.Branch(
        'mlp', layers.mlp, levit_layers.mlp_macs(at.num, at.width)),
    if group.startswith('encoders'):
      branches = backbone.Branch(
          'msa',
          functools.partial(layers.attention, heads, k, self.layerwise),
          levit_layers.attention_macs(at.num, at.width, heads, k),
          unscaled=('scores',)), *branches
    return backbone.Stack(group, start, length, branches, at)

  def _bridge(self, stage):
    """The subsampling before a stage, of all tokens of the one before it."""
    group, side = f'subsample_{stage}', self.side(stage - 1)
    heads = self.num_subsampling_heads(stage - 1)
    def run(params, x, images, ctx):
      del images
      x, stats = layers.subsample(
          side, heads, self.key_dim, self.layerwise, params[group],
          layers.restore(x), batch_norm.within(ctx, group))
      return x, batch_norm.changed(group, stats)
    return backbone.Bridge(run, self.subsample_macs(stage), (group,))

  def classify(self, params, x, index, ctx):
    del index
    mean = layers.patches(x).astype(jnp.float32).mean(1)
    logits, stats = self._answers(self.head_names, params, mean, ctx)
    if ctx.train:
      cls = x['tokens'][:, 0].astype(jnp.float32)
      aux, more = self._answers(self.aux_names, params, cls, ctx)
      logits, stats = logits._replace(aux=aux), {**stats, **more}
    return logits, stats

  def tokens(self, x, at):
    del at
    return x['tokens']

  def check(self):
    super().check()
    backbone.check_counts(self, 'num_full')
    token_selection.check_shares(self, 'keep_ratio', 'layerwise')
    for stage in range(self.num_stages):
      if not self.kept(stage):
        raise ValueError(f'keep_ratio={self.keep_ratio} keeps none of the '
                         f'{self.side(stage)**2} patches of stage {stage}')


def _imagenet(size, image_size=224):
  return dict(levit.MODELS[f'levit_{size}'], image_size=image_size)


MODELS = {
    **{f'evo_levit_{size}': _imagenet(size)
       for size in ('128s', '128', '192', '256', '384')},
    **{f'evo_levit_{size}_384': _imagenet(size, 384)
       for size in ('256', '384')},
}
