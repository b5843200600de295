"""DVT: transformers on growing token grids that reuse one another's work."""

import functools
import numbers

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import dvt_plan
from adavit_jax.models import dvt_reuse
from adavit_jax.models import dvt_stem
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import inputs
from adavit_jax.models import stack_rows
from adavit_jax.models import t2t
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.vit import check_encoder


class DVT(backbone.Backbone):
  """Dynamic Transformer: a cascade of ViTs on one image, an exit after each.

  From "Not All Images are Worth 16x16 Words: Dynamic Transformers for Efficient
  Image Recognition" (NeurIPS 2021). The function is that of its code. Initial
  values are not: linear layers of encoders begin as in this library's ViT, by
  Xavier's rule, and patches by LeCun's, where its code draws linear layers from
  a normal distribution of deviation 0.02 and patches from a uniform one. Its
  drop path, and the dropout of its stems, are left out.

  Every transformer has its own stem, class token, positions, encoders and head,
  and sees the whole image in its own number of tokens, the fewest first. From
  the second on, it can reuse the one before it:

  * features: every encoder's MLP also reads the final tokens of the previous
    transformer, through an MLP of its own, upsampled to its grid;
  * relations: the attention logits of all encoders of the previous transformer,
    transformed and upsampled, are added to its own before the softmax. They are
    the sums that the previous transformer took the softmax of.

  The logits of an MSA layer that a policy drops are zero for the next
  transformer.

  With reuse, activations are a dict: 'x' [B, N, D]; 'logits' [B, L, H, N, N],
  written encoder by encoder if the next transformer reuses relations; and from
  the second transformer on 'features' [B, N', D] and 'relations' [B, L, H, N',
  N'], those to reuse, with N' tokens of the previous grid. Relations are
  upsampled in the encoder that adds them, and nowhere stored at the new grid.
  From one transformer to the next, only what it reuses is carried: 'x' and
  'logits'. A stage that ends inside a transformer carries the whole dict.

  Attributes:
    grids: tokens per side of the image of each transformer, increasing; with
      reuse, at most twice the one before.
    width: token width D.
    depth: L, number of encoders of each transformer.
    num_heads: H; divides `width`.
    mlp_ratio: MLP hidden width over D.
    stem: 'patch', 'conv' or 't2t'. Patches overlap the border of the image
      where a grid does not divide it. 't2t' also takes the conventions of
      T2T-ViT: fixed sinusoid positions, no bias of queries, keys and values.
    windows: for 't2t', (size, stride, padding) of the first windows of each
      transformer.
    reuse_features: whether the second and later transformers reuse features.
    reuse_relations: whether they reuse relations.
  """
  linen = ('tokenize', 'answer')
  grids: tuple[int, ...]
  width: int
  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  stem: str = 'patch'
  windows: tuple[tuple[int, int, int], ...] = ()
  reuse_features: bool = True
  reuse_relations: bool = True

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  @property
  def num_transformers(self):
    return len(self.grids)

  @property
  def has_reuse(self):
    """Whether any transformer reuses another; x is a dict then."""
    return len(self.grids) > 1 and (self.reuse_features or self.reuse_relations)

  def at(self, index):
    """`Tokens` after each encoder of a transformer."""
    n = self.grids[index]
    return backbone.Tokens(self.width, 1 + n * n, 1, (n, n), self.num_heads,
                           self.mlp_dim)

  def encoder(self, index):
    """The encoder of a transformer, without parent, for `encoder.apply`."""
    reuses = index and self.reuse_features
    kind = dvt_reuse.ReusingEncoder if reuses else Encoder
    t2t_vit = self.stem == 't2t'
    return kind(self.width, self.num_heads, self.mlp_dim, self.dtype,
                qkv_bias=not t2t_vit, epsilon=self._epsilon, parent=None)

  @property
  def _epsilon(self):
    return t2t.EPSILON if self.stem == 't2t' else 1e-6

  def setup(self):
    normal = nn.initializers.truncated_normal(0.02, jnp.float32)
    each = lambda make, first=0: [
        make(i) for i in range(first, len(self.grids))]
    self.stems = each(functools.partial(dvt_stem.make, self))
    self.cls = each(lambda i: self.param(f'cls_{i}', normal,
                                         (1, 1, self.width)))
    fixed = lambda key, shape: jnp.asarray(t2t.sinusoids(*shape[1:]))
    positions = fixed if self.stem == 't2t' else normal
    self.pos_embeddings = each(lambda i: self.param(
        f'pos_embedding_{i}', positions, (1, self.at(i).num, self.width)))
    self.encoders = each(lambda i: self.param(
        f'encoders_{i}', encoder_lib.init_stack, self.encoder(i), self.depth))
    self.norms = each(lambda i: nn.LayerNorm(
        epsilon=self._epsilon, dtype=self.dtype, name=f'norm_{i}'))
    self.heads = each(lambda i: nn.Dense(
        self.num_classes, kernel_init=normal, name=f'head_{i}'))
    if self.reuse_relations:
      self.relations = each(lambda i: dvt_reuse.Relations(
          self.dtype, name=f'relations_{i}'), first=1)

  def tokenize(self, images, x, index):
    """Computes the input of a transformer.

    Args:
      images: [B, S, S, C].
      x: activations after the previous transformer; None for the first.
      index: index of the transformer.

    Returns:
      Activations before its first encoder.
    """
    tokens = self.stems[index](images)
    cls = jnp.tile(self.cls[index], (tokens.shape[0], 1, 1))
    tokens = jnp.concatenate([cls.astype(tokens.dtype), tokens], axis=1)
    positions = self.pos_embeddings[index]
    if self.stem == 't2t':
      positions = jax.lax.stop_gradient(positions)
    tokens += positions.astype(tokens.dtype)
    if not self.has_reuse:
      return tokens
    state = {'x': tokens}
    if index and self.reuse_features:
      state['features'] = x['x']
    if index and self.reuse_relations:
      state['relations'] = self.relations[index - 1](x['logits'])
    return state

  def answer(self, x, index):
    """Activations to the `Logits` of an exit, from the class token alone."""
    y = self.norms[index](self.tokens(x, None)[..., 0, :])
    return backbone.Logits(self.heads[index](y.astype(jnp.float32)))

  def __call__(self, images):
    """Runs all transformers: [B, S, S, C] to logits of all exits [E, B, K]."""
    inputs.check_normalized(self, images)
    x, logits = None, []
    for i, params in enumerate(self.encoders):
      x = self._scan(i, params, self.tokenize(images, x, i))
      logits.append(self.answer(x, i).cls)
    return jnp.stack(logits)

  def _scan(self, index, params, x):
    stack = dvt_plan.stack(self, index)
    def step(x, layer):
      p, row = layer
      x = stack_rows.enter(stack, x, row)
      for branch in stack.branches:
        y = branch.run(p, x, None, backbone.EVAL).x
        x = ({**x, **{key: x[key] + y[key] for key in y}}
             if self.has_reuse else x + y)
      return stack_rows.leave(stack, x)
    shared, each = stack_rows.split(stack, x)
    return stack_rows.join(
        stack, x, *jax.lax.scan(step, shared, (params, each)))

  def embed(self, params, images, ctx):
    return self.apply(
        {'params': params}, images, None, 0, method='tokenize'), {}

  def plan(self):
    items = [dvt_plan.stack(self, 0)]
    for i in range(1, len(self.grids)):
      items += [dvt_plan.bridge(self, i), dvt_plan.stack(self, i)]
    return tuple(items)

  def own_exits(self):
    read = None if self.has_reuse else 1
    return tuple(
        backbone.OwnExit((i + 1) * self.depth, self.width * self.num_classes,
                         (f'norm_{i}', f'head_{i}'), read=read)
        for i in range(len(self.grids)))

  def tokens(self, x, at):
    del at
    return x['x'] if isinstance(x, dict) else x

  def classify(self, params, x, index, ctx):
    return self.apply({'params': params}, x, index, method='answer'), {}

  @property
  def embed_macs(self):
    return dvt_stem.macs(self, 0)

  def paper_flops(self):
    return dvt_plan.paper_flops(self)

  def check(self):
    super().check()
    backbone.check_counts(self, 'width', 'depth', 'num_heads')
    check_encoder(self)
    grids, s = self.grids, self.image_size
    whole = isinstance(grids, tuple) and all(
        isinstance(n, numbers.Integral) and 1 <= n <= s for n in grids)
    if not whole or not grids or list(grids) != sorted(set(grids)):
      raise ValueError(f'grids={grids!r} must be increasing numbers of tokens '
                       f'per side, at most image_size={s}')
    if self.has_reuse and any(2 * a < b for a, b in zip(grids, grids[1:])):
      raise ValueError(f'grids={grids}: with reuse, each must be at most twice '
                       f'the one before it')
    for name in ('reuse_features', 'reuse_relations'):
      if not isinstance(getattr(self, name), bool):
        raise ValueError(f'{name}={getattr(self, name)!r} must be True or '
                         f'False')
    dvt_stem.check(self)


_T2T = dict(image_size=224, num_classes=1000, grids=(7, 10, 14), stem='t2t',
            windows=((14, 8, 3), (11, 6, 5), (7, 4, 2)))
MODELS = {
    # Models of the paper.
    'dvt_t2t_vit_12_224': dict(
        _T2T, width=256, depth=12, num_heads=4, mlp_ratio=2.0),
    'dvt_t2t_vit_14_224': dict(
        _T2T, width=384, depth=14, num_heads=6, mlp_ratio=3.0),
    'dvt_deit_small_224': dict(
        image_size=224, num_classes=1000, grids=(7, 10, 14), width=384,
        depth=12, num_heads=6),
    # Small images.
    'dvt_cifar_32': dict(
        image_size=32, num_classes=10, grids=(4, 8), width=96, depth=4,
        num_heads=3, mlp_ratio=2.0, stem='conv'),
}
