"""RAViT: one transformer per resolution, coarse first, joined by the CLS token.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import init_stack
from adavit_jax.models.encoder import run_stack
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.vit import check_normalized


class RAViT(nn.Module):
  """Resolution-adaptive ViT with an exit after each branch (RAViT, figure 1).

  Every branch sees the same image at its own size through patches of one size
  and runs its encoders over [CLS, patches]. The CLS token that leaves the
  encoders opens the next branch, so that all widths are equal, and goes through
  the branch's exit: LayerNorm and one linear layer.

  A branch with 0 layers is absent, its exit too: layers=(2, 0, 3) has two
  stages and (0, 0, 4) is a plain ViT of 4 encoders. Names of parameters carry
  the number of the branch in `layers`, absent ones counted.

  Attributes:
    image_size: side S of the square input in pixels.
    patch_size: side of a patch; divides the size of every branch.
    num_classes: K.
    width: token width D.
    layers: encoders of each branch, the coarsest first: i-j-k in the paper.
    factors: per branch, S over the side that the branch sees, >= 1 and falling.
      Equal factors split the layers of one resolution over several exits.
    num_heads: H; divides `width`.
    channels: input channels C.
    mlp_ratio: MLP hidden width over D.
    shared_stem: one patch embedding for all branches instead of one each.
    dtype: compute dtype; parameters, softmax and logits are float32.
  """
  image_size: int
  patch_size: int
  num_classes: int
  width: int
  layers: tuple[int, ...]
  factors: tuple[float, ...]
  num_heads: int
  channels: int = 3
  mlp_ratio: float = 4.0
  shared_stem: bool = False
  dtype: Any = jnp.float32

  @property
  def branches(self):
    """Numbers of the branches that are present."""
    return [i for i, layers in enumerate(self.layers) if layers]

  @property
  def num_stages(self):
    """E, branches that are present; each ends in an exit."""
    return len(self.branches)

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  def branch_size(self, branch):
    """Side in pixels of the image that a branch sees."""
    return round(self.image_size / self.factors[branch])

  def branch_tokens(self, branch):
    """Tokens of a branch: its patches and the CLS token."""
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
    """The encoder as a free-standing module, for `encoder.apply`."""
    return Encoder(self.width, self.num_heads, self.mlp_dim, self.dtype,
                   parent=None)

  def stage(self, images, cls, index, **options):
    """Runs one branch; see `stages.stages`.

    Args:
      images: [B, S, S, C], of the model's size: the branch resizes them.
      cls: CLS token of the branch before, [B, 1, D]; None for the learned one.
      index: which of the `num_stages` branches that are present.
      **options: unroll, remat and inference, see `run_stack`. For inference,
        the last encoder computes the CLS token alone.

    Returns:
      (CLS token after the encoders [B, 1, D], logits [B, K] float32).

    Raises:
      ValueError: as `vit.check_normalized`.
    """
    check_normalized(self, images)
    x = self.stems[index](
        resize(images, self.branch_size(self.branches[index])))
    if cls is None:
      cls = jnp.tile(self.cls, (x.shape[0], 1, 1))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    x = x + self.pos_embeddings[index].astype(x.dtype)
    x = run_stack(self.encoder, self.encoders[index], x, 0,
                  self.layers[self.branches[index]],
                  read=1 if options.get('inference') else None, **options)
    # The encoders are pre-LN: handed over is the token itself, and the norm
    # belongs to the exit, as it does to a branch of an encoder.
    cls = x[:, :1]
    y = self.norms[index](cls[:, 0]).astype(jnp.float32)
    return cls, self.heads[index](y)

  def __call__(self, images, **options):
    """All branches, with the options of `stage`.

    [B, S, S, C] -> logits at every exit [E, B, K].
    """
    cls, logits = None, []
    for i in range(self.num_stages):
      cls, y = self.stage(images, cls, i, **options)
      logits.append(y)
    return jnp.stack(logits)


def resize(images, size):
  """Resizes [B, S, S, C] to [B, size, size, C], linear and antialiased.

  Normalised images may be resized as well as raw ones: the weights of every
  pixel add up to one.
  """
  b, s, _, c = images.shape
  if size == s:
    return images
  return jax.image.resize(images, (b, size, size, c), 'linear', antialias=True)


def check(m):
  """Raises a ValueError if the attributes of a `RAViT` do not fit together."""
  if m.width % m.num_heads:
    raise ValueError(f'num_heads={m.num_heads} does not divide width={m.width}')
  for key in ('layers', 'factors'):
    if not isinstance(getattr(m, key), tuple):
      raise ValueError(f'{key}={getattr(m, key)!r} must be a tuple with one '
                       f'number for each branch')
  if len(m.layers) != len(m.factors):
    raise ValueError(
        f'layers={m.layers} and factors={m.factors} must have one number for '
        f'each branch; 0 layers leave a branch out')
  if (any(not isinstance(n, int) or n < 0 for n in m.layers)
      or not any(m.layers)):
    raise ValueError(f'layers={m.layers} must be whole numbers, none negative '
                     f'and at least one of them positive')
  if min(m.factors) < 1 or any(a < b for a, b in zip(m.factors, m.factors[1:])):
    raise ValueError(f'factors={m.factors} must be at least 1 and must not '
                     f'rise: the coarsest branch comes first')
  for i in m.branches:
    size, p = m.branch_size(i), m.patch_size
    if size % p or size < p:
      below = max(size // p * p, p)
      fits = [f'{m.image_size / s:g} ({s} pixels)'
              for s in (below, below + p) if s <= m.image_size]
      raise ValueError(
          f'factors={m.factors}: branch {i} sees {size} x {size} pixels, which '
          f'patch_size={p} does not divide; the nearest factors that fit: '
          f'{" or ".join(fits) or "none"}')
