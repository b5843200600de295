"""Evo-ViT on DeiT (Xu et al., 2022, arXiv:2108.01390): Evo-DeiT."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import token_selection
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.stem import stem_macs
from adavit_jax.models.vit import check_encoder

# Of training alone: a LayerNorm and a head of the class token.
_AUX = ('norm_cls', 'head_cls')


class EvoDeiT(backbone.Backbone):
  """A ViT whose later encoders update the patch tokens of the highest scores.

  The score of a patch is the attention that the class token pays to it, summed
  over the heads and averaged over the encoders. Encoders from `num_full` on run
  on the class token and the K patches of the highest scores; the others wait
  and may come back at the next selection. A dropped MSA layer leaves the scores
  as they are. The head reads the mean over all patches, which it normalizes
  afterwards; in training another head reads the class token.

  Activations are a dict, see `token_selection.select`; exits and policies read
  the class token and the patches that encoders update.

  Attributes:
    patch_size: side of a patch in pixels; divides `image_size`.
    width: token width D.
    depth: number of encoders.
    num_heads: H; divides `width`.
    mlp_ratio: MLP hidden width over D.
    keep_ratio: share of the T patches that encoders update after a selection, K
      = int(T * keep_ratio); 1 updates all, without scores.
    num_full: number of encoders before the first selection, at least 1.
    stage_length: number of encoders from one selection to the next.
    alpha: weight of an encoder's attention in the average of the scores, after
      the first selection; before it, the last encoder's alone counts.
    layerwise: share of the steps of a phase with `Context.progress` in which
      tokens are selected before every encoder instead of once per stage; 1 for
      always, including inference.
  """
  unsaved = ('keep_ratio', 'layerwise')
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  keep_ratio: float = 0.5
  num_full: int = 4
  stage_length: int = 4
  alpha: float = 0.5
  layerwise: float = 0.

  @property
  def num_patches(self):
    """T, number of patches of an image."""
    return (self.image_size // self.patch_size) ** 2

  @property
  def num_kept(self):
    """K, number of patches that encoders update after a selection."""
    return int(self.num_patches * self.keep_ratio)

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  @property
  def encoder(self):
    """The encoder as a module without parent, for `encoder.apply`."""
    return encoder_lib.Encoder(
        self.width, self.num_heads, self.mlp_dim, self.dtype, parent=None)

  @property
  def _stem(self):
    return PatchStem(self.width, self.patch_size, self.dtype, parent=None)

  def at(self, selected):
    """`Tokens` of all patches, or of the selected ones, which form no grid."""
    side = self.image_size // self.patch_size
    num, grid = self.num_patches, (side, side)
    if selected:
      num, grid = self.num_kept, None
    return backbone.Tokens(
        self.width, 1 + num, 1, grid, self.num_heads, self.mlp_dim)

  def init_variables(self, key):
    d, k = self.width, self.num_classes
    keys = iter(jax.random.split(key, 6))
    normal = nn.initializers.truncated_normal(0.02)
    images = jnp.zeros(
        (1, self.image_size, self.image_size, self.channels))
    params = dict(
        patch_embed=self._stem.init(next(keys), images)['params'],
        cls=normal(next(keys), (1, 1, d)),
        pos_embedding=normal(next(keys), (1, 1 + self.num_patches, d)),
        encoders=encoder_lib.init_stack(next(keys), self.encoder, self.depth))
    for norm, head in (('norm', 'head'), _AUX):
      params[norm] = dict(scale=jnp.ones(d), bias=jnp.zeros(d))
      params[head] = dict(kernel=normal(next(keys), (d, k)), bias=jnp.zeros(k))
    return params, {}

  def embed(self, params, images, ctx):
    del ctx
    x = self._stem.apply({'params': params['patch_embed']}, images)
    cls = jnp.tile(params['cls'], (x.shape[0], 1, 1)).astype(x.dtype)
    x = jnp.concatenate([cls, x], axis=1)
    x = dict(tokens=x + params['pos_embedding'].astype(x.dtype))
    if self._selections():
      x['scores'] = jnp.zeros(
          (images.shape[0], self.num_patches), jnp.float32)
    return x, {}

  def _selections(self):
    """Encoders before which tokens may be selected, in order."""
    if self.num_kept == self.num_patches:
      return ()
    return tuple(range(self.num_full, self.depth,
                       1 if self.layerwise else self.stage_length))

  def plan(self):
    bridges = self._selections()
    starts, items = (0, *bridges), []
    for start, stop in zip(starts, (*bridges, self.depth)):
      scored = stop < self.depth
      if start:
        items.append(self._selection(start, scored))
      items.append(backbone.Stack(
          'encoders', start, stop - start, self._branches(start > 0, scored),
          self.at(start > 0)))
    return tuple(items)

  def _selection(self, place, scored):
    """The bridge before the encoder `place`; `scored` as in `select`."""
    again = functools.partial(
        token_selection.select, num=self.num_kept, scored=scored)
    keep = functools.partial(token_selection.keep, scored=scored)
    begins_stage = (place - self.num_full) % self.stage_length == 0

    def run(params, x, images, ctx):
      del params, images
      selects = begins_stage or token_selection.reselects(self.layerwise, ctx)
      return token_selection.select_if(selects, again, keep, x), {}
    return backbone.Bridge(run, 0)

  def _branches(self, selected, scored):
    """The branches of an encoder; with `scored`, its MSA updates the scores."""
    encoder = self.encoder
    plain_msa, plain_mlp = encoder_lib.branches(encoder, self.at(selected))
    alpha = self.alpha if selected else 1.

    def msa(params, x, read, ctx):
      del read, ctx
      y, row = encoder.apply(
          {'params': params}, x['tokens'], method='msa_and_row')
      # The order that scores give has no gradient.
      now = jax.lax.stop_gradient(row[:, :, 1:].sum(1))
      return backbone.Delta(dict(
          tokens=y, scores=alpha * (now - x['scores'])))

    def of_tokens(branch):
      return lambda params, x, read, ctx: backbone.Delta(dict(
          tokens=branch.run(params, x['tokens'], None, ctx).x))

    return (
        backbone.Branch('msa', msa if scored else of_tokens(plain_msa),
                        plain_msa.macs,
                        unscaled=('scores',) if scored else ()),
        backbone.Branch('mlp', of_tokens(plain_mlp), plain_mlp.macs))

  def own_exits(self):
    return backbone.OwnExit(self.depth, self.width * self.num_classes,
                            ('norm', 'head', *_AUX)),

  def classify(self, params, x, index, ctx):
    del index
    tokens = x['tokens']
    total = tokens[:, 1:].sum(1, dtype=jnp.float32)
    if 'rest' in x:
      total += x['rest'].sum(1, dtype=jnp.float32)
    logits = self._head(params, total / self.num_patches, 'norm', 'head')
    aux = None
    if ctx.train:
      aux = backbone.Logits(self._head(params, tokens[:, 0], *_AUX))
    return backbone.Logits(logits, aux=aux), {}

  def _head(self, params, x, norm, head):
    """LayerNorm and head: [B, D] to [B, K] float32."""
    module = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, parent=None)
    x = module.apply({'params': params[norm]}, x).astype(jnp.float32)
    return x @ params[head]['kernel'] + params[head]['bias']

  def tokens(self, x, at):
    del at
    return x['tokens']

  def fold(self, params, stats):
    """Leaves out what only training uses."""
    del stats
    return {name: p for name, p in params.items() if name not in _AUX}

  @property
  def embed_macs(self):
    return stem_macs('patch', self.image_size, self.patch_size, self.channels,
                     self.width)

  def check(self):
    super().check()
    backbone.check_counts(self, 'patch_size', 'width', 'depth', 'num_heads',
                          'num_full', 'stage_length')
    if self.image_size % self.patch_size:
      raise ValueError(f'patch_size={self.patch_size} does not divide '
                       f'image_size={self.image_size}')
    check_encoder(self)
    token_selection.check_shares(self, 'keep_ratio', 'alpha', 'layerwise')
    if not self.num_kept:
      raise ValueError(f'keep_ratio={self.keep_ratio} keeps none of '
                       f'{self.num_patches} patches; raise it')
    if self.num_full >= self.depth and self.num_kept < self.num_patches:
      raise ValueError(f'num_full={self.num_full} must be smaller than depth='
                       f'{self.depth}, or keep_ratio=1 for no selection')


_SIZES = {
    'tiny': dict(width=192, num_heads=3),
    'small': dict(width=384, num_heads=6),
    'base': dict(width=768, num_heads=12),
}

MODELS = {
    'evo_cifar_32': dict(
        image_size=32, patch_size=4, num_classes=10, width=96, depth=8,
        num_heads=3, mlp_ratio=2., num_full=2, stage_length=3, num_fixed=2),
    **{f'evo_deit_{size}_{image}': dict(
        image_size=image, patch_size=16, num_classes=1000, depth=12,
        **_SIZES[size])
       for size, image in (('tiny', 224), ('small', 224), ('base', 224),
                           ('small', 384), ('base', 384))},
}
