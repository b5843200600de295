"""RAViT: one transformer per resolution, linked by the CLS token."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import backbone
from adavit_jax.models import inputs
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import branches
from adavit_jax.models.encoder import init_stack
from adavit_jax.models.encoder import macs
from adavit_jax.models.encoder import scan_stack
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.stem import stem_macs
from adavit_jax.models.vit import check_encoder


class RAViT(backbone.Backbone):
  """Resolution-adaptive ViT with an exit after each branch (RAViT, figure 1).

  Each branch resizes the image to its own resolution, with the same patch size
  for all branches, and runs its encoders over [CLS, patches]. The output CLS
  token is the input CLS token of the next branch, so all widths are equal. The
  exit of the branch applies LayerNorm and one linear layer to it.

  A branch with 0 layers is absent, together with its exit: layers=(2, 0, 3) has
  two exits and (0, 0, 4) is a plain ViT with 4 encoders. Parameter names
  contain the index of the branch in `layers`, counting absent branches.

  Attributes:
    patch_size: side of a patch in pixels; divides the size of every branch.
    width: token width D.
    layers: number of encoders per branch, the coarsest first; i-j-k in the
      paper.
    factors: downsampling factor per branch, S over the side of its image; >= 1
      and non-increasing. Equal factors split the layers of one resolution over
      several exits.
    num_heads: H; divides `width`.
    mlp_ratio: MLP hidden width over D.
    shared_stem: whether all branches share one patch embedding.
  """
  linen = ('tokenize', 'answer')
  patch_size: int
  width: int
  layers: tuple[int, ...]
  factors: tuple[float, ...]
  num_heads: int
  mlp_ratio: float = 4.0
  shared_stem: bool = False

  @property
  def branches(self):
    """Indices of the branches that are present."""
    return [i for i, layers in enumerate(self.layers) if layers]

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  def branch_size(self, branch):
    """Side in pixels of the input image of a branch."""
    return round(self.image_size / self.factors[branch])

  def branch_tokens(self, branch):
    """Number of tokens of a branch: its patches and the CLS token."""
    return 1 + (self.branch_size(branch) // self.patch_size) ** 2

  def setup(self):
    normal = nn.initializers.truncated_normal(0.02, jnp.float32)
    self.cls = self.param('cls', normal, (1, 1, self.width))
    stem = lambda name: PatchStem(
        self.width, self.patch_size, self.dtype, name=name)
    shared = stem('patch_embed') if self.shared_stem else None
    self.stems = [shared or stem(f'patch_embed_{i}') for i in self.branches]
    self.pos_embeddings = [
        self.param(f'pos_embedding_{i}', normal,
                   (1, self.branch_tokens(i), self.width))
        for i in self.branches]
    self.encoders = [
        self.param(
            f'encoders_{i}', init_stack, self.encoder, self.layers[i])
        for i in self.branches]
    self.norms = [
        nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f'norm_{i}')
        for i in self.branches]
    self.heads = [
        nn.Dense(self.num_classes, kernel_init=normal, name=f'head_{i}')
        for i in self.branches]

  @property
  def encoder(self):
    """The encoder as a module without parent, for `encoder.apply`."""
    return Encoder(self.width, self.num_heads, self.mlp_dim, self.dtype,
                   parent=None)

  def at(self, branch):
    """`Tokens` after each encoder of a branch."""
    side = self.branch_size(branch) // self.patch_size
    return backbone.Tokens(self.width, 1 + side * side, 1, (side, side),
                           self.num_heads, self.mlp_dim)

  def tokenize(self, images, cls, index):
    """Computes the input tokens of a branch.

    Args:
      images: [B, S, S, C]; resized to the resolution of the branch.
      cls: CLS token of the previous branch, [B, 1, D]; None for the learned
        one.
      index: index among the branches that are present.

    Returns:
      [B, N, D].
    """
    x = self.stems[index](
        resize(images, self.branch_size(self.branches[index])))
    if cls is None:
      cls = jnp.tile(self.cls, (x.shape[0], 1, 1))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    return x + self.pos_embeddings[index].astype(x.dtype)

  def answer(self, x, index):
    """Tokens [..., n, D], the CLS token first, to the `Logits` of an exit."""
    # As in the branches of pre-LN encoders, the norm belongs to the exit: the
    # next branch receives the CLS token without it.
    y = self.norms[index](x[..., 0, :]).astype(jnp.float32)
    return backbone.Logits(self.heads[index](y))

  def __call__(self, images):
    """Runs all branches: [B, S, S, C] to logits at every exit [E, B, K]."""
    inputs.check_normalized(self, images)
    cls, logits = None, []
    for i, stack in enumerate(self.encoders):
      x = self.tokenize(images, cls, i)
      x = scan_stack(self.encoder, stack, x)
      cls = x[:, :1]
      logits.append(self.answer(x, i).cls)
    return jnp.stack(logits)

  def embed(self, params, images, ctx):
    return self.apply(
        {'params': params}, images, None, 0, method='tokenize'), {}

  def plan(self):
    items = []
    for i, branch in enumerate(self.branches):
      if i:
        items.append(self._bridge(i))
      at = self.at(branch)
      items.append(backbone.Stack(
          f'encoders_{branch}', 0, self.layers[branch],
          branches(self.encoder, at), at))
    return tuple(items)

  def _bridge(self, index):
    """The bridge that passes the CLS token to branch `index`."""
    branch = self.branches[index]
    def run(params, x, images, ctx):
      del ctx
      return self.apply({'params': params}, images, x[:, :1], index,
                        method='tokenize'), {}
    stem = () if self.shared_stem else (f'patch_embed_{branch}',)
    return backbone.Bridge(
        run, self._tokenize_macs(branch), (*stem, f'pos_embedding_{branch}'),
        reads_images=True, read=1)

  def own_exits(self):
    places = itertools.accumulate(self.layers[i] for i in self.branches)
    return tuple(
        backbone.OwnExit(place, self.width * self.num_classes,
                         (f'norm_{i}', f'head_{i}'), read=1)
        for i, place in zip(self.branches, places))

  def classify(self, params, x, index, ctx):
    return self.apply({'params': params}, x, index, method='answer'), {}

  @property
  def embed_macs(self):
    return self._tokenize_macs(self.branches[0])

  def _tokenize_macs(self, branch):
    size, full = self.branch_size(branch), self.image_size
    # Rows, then columns, as dense matrix products.
    resize_macs = size * full * self.channels * (full + size)
    stem = stem_macs('patch', size, self.patch_size, self.channels, self.width)
    return stem + (resize_macs if size < full else 0)

  def paper_flops(self):
    """FLOPs of each branch as counted in the paper: encoders only.

    Equation 2 gives the MACs of one encoder with N tokens, 2 N^2 D + 12 N D^2
    for an MLP of width 4 D; equation 3 gives the sum over encoders. The FLOPs
    in the tables of the paper are twice these numbers.
    """
    return tuple(
        2 * self.layers[i] * sum(macs(self.branch_tokens(i), self.width,
                                  self.mlp_dim))
        for i in self.branches)

  def check(self):
    super().check()
    backbone.check_counts(self, 'patch_size', 'width', 'num_heads')
    check_encoder(self)
    layers, factors = self.layers, self.factors
    for key, value in dict(layers=layers, factors=factors).items():
      if not isinstance(value, tuple):
        raise ValueError(f'{key}={value!r} must be a tuple with one number per '
                         f'branch')
    if any(isinstance(x, bool) or not isinstance(x, (int, float))
           for x in factors):
      raise ValueError(f'factors={factors} must be numbers')
    if not isinstance(self.shared_stem, bool):
      raise ValueError(f'shared_stem={self.shared_stem!r} must be True or '
                       f'False')
    if len(layers) != len(factors):
      raise ValueError(
          f'layers={layers} and factors={factors} must have one number per '
          f'branch; set layers to 0 to omit a branch')
    if (any(not isinstance(n, int) or n < 0 for n in layers)
        or not any(layers)):
      raise ValueError(f'layers={layers} must be non-negative integers, at '
                       f'least one of them positive')
    if not min(factors) >= 1 or any(
        a < b for a, b in zip(factors, factors[1:])):
      raise ValueError(f'factors={factors} must be at least 1 and must not '
                       f'increase: the coarsest branch comes first')
    for i in self.branches:
      self._check_branch(i)

  def _check_branch(self, branch):
    size, p = self.branch_size(branch), self.patch_size
    if size % p or size < p:
      below = max(size // p * p, p)
      valid = [f'{self.image_size / s:g} ({s} pixels)'
               for s in (below, below + p) if s <= self.image_size]
      raise ValueError(
          f'factors={self.factors}: branch {branch} has {size} x {size} '
          f'pixels, which patch_size={p} does not divide; the nearest valid '
          f'factors: {" or ".join(valid) or "none"}')


def resize(images, size):
  """Resizes [B, S, S, C] to [B, size, size, C], linear with antialiasing.

  The weights of each output pixel sum to 1, so resizing commutes with the
  normalization of images. As `jax.image.resize`, but plain products, which also
  convert to ONNX for any number of images.
  """
  if images.shape[1] == size:
    return images
  u = jnp.asarray(_linear(images.shape[1], size), images.dtype)
  return jnp.einsum('brsc,ir,js->bijc', images, u, u,
                    precision=jax.lax.Precision.HIGHEST)


def _linear(old, new):
  """The matrix of one axis, float64 [new, old]; its rows sum to 1."""
  center = (np.arange(new) + 0.5) * old / new - 0.5
  distance = np.abs(center[:, None] - np.arange(old)) / max(old / new, 1)
  weights = np.maximum(1 - distance, 0)
  return weights / weights.sum(1, keepdims=True)


# Models of the paper.
MODELS = {
    'ravit_cifar_patch4_32': dict(
        image_size=32, patch_size=4, num_classes=10, width=128, num_heads=4,
        layers=(1, 3), factors=(2, 1)),
    'ravit_tiny_imagenet_patch4_64': dict(
        image_size=64, patch_size=4, num_classes=200, width=768, num_heads=12,
        layers=(2, 0, 3), factors=(4, 2, 1)),
    # Branches of 64, 128 and 224 pixels.
    'ravit_imagenet_patch16_224': dict(
        image_size=224, patch_size=16, num_classes=1000, width=768,
        num_heads=12, layers=(1, 1, 8), factors=(3.5, 1.75, 1)),
}
