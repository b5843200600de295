"""The vision transformer (ViT, DeiT): one stack of encoders."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import backbone
from adavit_jax.models import inputs
from adavit_jax.models import merging_plan
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import branches
from adavit_jax.models.encoder import init_stack
from adavit_jax.models.encoder import scan_stack
from adavit_jax.models.stem import ConvStem
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.stem import stem_macs


class ViT(backbone.Backbone):
  """Pre-LN ViT / DeiT.

  Attributes:
    patch_size: side of a patch in pixels; divides `image_size`.
    width: token width D.
    depth: number of encoders.
    num_heads: H; divides `width`.
    mlp_ratio: MLP hidden width over D.
    stem: 'patch' or 'conv'.
    distillation: whether to add the distillation token and its head (DeiT).
    merge: r, number of tokens that each encoder merges into others, see
      `merging`; 0 for none.
    merge_schedule: 'constant', or 'falling': linearly to 0, with the mean r.
    merge_every: 1 to merge in every encoder; n to merge only before every n-th
      one, as many tokens at once as n encoders would have.
  """
  linen = ('tokenize', 'answer')
  unsaved = ('merge', 'merge_schedule', 'merge_every')
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  stem: str = 'patch'
  distillation: bool = False
  merge: int = 0
  merge_schedule: str = 'constant'
  merge_every: int = 1

  @property
  def num_prefix(self):
    """P: the class token and, if present, the distillation token."""
    return 1 + self.distillation

  @property
  def num_tokens(self):
    """N, number of tokens of one image before any merge."""
    return self.num_prefix + (self.image_size // self.patch_size) ** 2

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  @property
  def encoder(self):
    """The encoder as a module without parent, for `encoder.apply`."""
    return Encoder(self.width, self.num_heads, self.mlp_dim, self.dtype,
                   parent=None)

  @property
  def at(self):
    """`Tokens` at every place of the plan without merging."""
    side = self.image_size // self.patch_size
    return backbone.Tokens(
        self.width, self.num_tokens, self.num_prefix, (side, side),
        self.num_heads, self.mlp_dim)

  def setup(self):
    stem = {'patch': PatchStem, 'conv': ConvStem}[self.stem]
    self.patch_embed = stem(self.width, self.patch_size, self.dtype)
    normal = nn.initializers.truncated_normal(0.02, jnp.float32)
    self.cls = self.param('cls', normal, (1, 1, self.width))
    if self.distillation:
      self.dist = self.param('dist', normal, (1, 1, self.width))
    self.pos_embedding = self.param(
        'pos_embedding', normal, (1, self.num_tokens, self.width))
    self.encoders = self.param(
        'encoders', init_stack, self.encoder, self.depth)
    self.norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.head = nn.Dense(self.num_classes, kernel_init=normal)
    if self.distillation:
      self.head_dist = nn.Dense(self.num_classes, kernel_init=normal)

  def tokenize(self, images):
    """Images [B, S, S, C] to tokens [B, N, D], with position embedding."""
    x = self.patch_embed(images)
    prefix = [self.cls, self.dist] if self.distillation else [self.cls]
    prefix = [jnp.tile(t, (x.shape[0], 1, 1)).astype(x.dtype) for t in prefix]
    x = jnp.concatenate([*prefix, x], axis=1)
    return x + self.pos_embedding.astype(x.dtype)

  def answer(self, x):
    """Tokens [..., n, D], the prefix first, to `Logits`."""
    x = self.norm(x[..., :self.num_prefix, :]).astype(jnp.float32)
    dist = self.head_dist(x[..., 1, :]) if self.distillation else None
    return backbone.Logits(self.head(x[..., 0, :]), dist)

  def __call__(self, images):
    """Runs all layers: normalized images [B, S, S, C] to `Logits`."""
    inputs.check_normalized(self, images)
    x = self.tokenize(images)
    if self.merge:
      x = merging_plan.run(self, {'encoders': self.encoders}, x)['tokens']
      return self.answer(x)
    return self.answer(scan_stack(self.encoder, self.encoders, x))

  def embed(self, params, images, ctx):
    x = self.apply({'params': params}, images, method='tokenize')
    return merging_plan.start(x) if self.merge else x, {}

  def tokens(self, x, at):
    return x['tokens'] if self.merge else x

  def plan(self):
    if self.merge:
      return merging_plan.plan(self)
    return backbone.Stack('encoders', 0, self.depth,
                          branches(self.encoder, self.at), self.at),

  def own_exits(self):
    groups = ('norm', 'head', 'head_dist')[:1 + self.num_prefix]
    return backbone.OwnExit(
        self.depth, self.num_prefix * self.width * self.num_classes, groups,
        read=self.num_prefix),

  def classify(self, params, x, index, ctx):
    x = self.tokens(x, None)
    return self.apply({'params': params}, x, method='answer'), {}

  @property
  def embed_macs(self):
    return stem_macs(self.stem, self.image_size, self.patch_size, self.channels,
                     self.width)

  def check(self):
    super().check()
    backbone.check_counts(self, 'patch_size', 'width', 'depth', 'num_heads')
    if self.image_size % self.patch_size:
      raise ValueError(f'patch_size={self.patch_size} does not divide '
                       f'image_size={self.image_size}')
    check_encoder(self)
    merging_plan.check(self)
    if not isinstance(self.distillation, (bool, np.bool_)):
      raise ValueError(f'distillation={self.distillation!r} must be True or '
                       f'False')
    if self.stem not in ('patch', 'conv'):
      raise ValueError(f"stem={self.stem!r} must be 'patch' or 'conv'")
    if self.stem == 'conv' and (self.patch_size < 2
                                or not math.log2(self.patch_size).is_integer()):
      raise ValueError(f"stem='conv' needs a power of two as patch_size, not "
                       f'patch_size={self.patch_size}')


def check_encoder(m):
  """Raises a ValueError if num_heads or mlp_ratio do not fit the width."""
  if m.width % m.num_heads:
    raise ValueError(f'num_heads={m.num_heads} does not divide width={m.width}')
  try:
    fits = 1 <= m.mlp_ratio * m.width < math.inf
  except TypeError:
    fits = False
  if not fits:
    raise ValueError(f'mlp_ratio={m.mlp_ratio!r} must be a number for which '
                     f'the MLP is at least 1 wide, with width={m.width}')


_SIZES = {
    'tiny': dict(width=192, num_heads=3, depth=12),
    'small': dict(width=384, num_heads=6, depth=12),
    'base': dict(width=768, num_heads=12, depth=12),
    'large': dict(width=1024, num_heads=16, depth=24),
}


def _imagenet(family, sizes, patches, images, **attributes):
  """Models with timm's names, for all combinations of sizes."""
  return {
      f'{family.format(size)}_patch{patch}_{image}': dict(
          image_size=image, patch_size=patch, num_classes=1000,
          **_SIZES[size], **attributes)
      for size in sizes for patch in patches for image in images}


MODELS = {
    # Small images: scikit-learn's digits, digit scenes, CIFAR.
    'vit_digits_patch2_8': dict(
        image_size=8, patch_size=2, channels=1, num_classes=10, width=48,
        depth=8, num_heads=2, mlp_ratio=2.0, num_fixed=1),
    'vit_scenes_patch4_16': dict(
        image_size=16, patch_size=4, channels=1, num_classes=10, width=48,
        depth=8, num_heads=2, mlp_ratio=2.0, num_fixed=2),
    'vit_cifar_patch4_32': dict(
        image_size=32, patch_size=4, num_classes=10, width=192, depth=9,
        num_heads=3, mlp_ratio=2.0, num_fixed=2),
    'vit_cifar_conv8_32': dict(
        image_size=32, patch_size=8, num_classes=10, width=128, depth=8,
        num_heads=4, mlp_ratio=2.0, num_fixed=2, stem='conv'),
    **_imagenet('vit_{}', ('tiny',), (16,), (224, 384)),
    **_imagenet('vit_{}', ('small', 'base', 'large'), (16, 32), (224, 384)),
    **_imagenet('deit_{}', ('tiny', 'small', 'base'), (16,), (224,)),
    **_imagenet('deit_{}', ('base',), (16,), (384,)),
    **_imagenet('deit_{}_distilled', ('tiny', 'small', 'base'), (16,), (224,),
                distillation=True),
    **_imagenet('deit_{}_distilled', ('base',), (16,), (384,),
                distillation=True),
}
