"""CrossViT (Chen et al., 2021, arXiv:2103.14899): two streams of patches."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import bicubic
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import inputs
from adavit_jax.models.cross_attention import CrossAttention
from adavit_jax.models.cross_attention import cross_attention_macs
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.multi_conv_stem import CONVS
from adavit_jax.models.multi_conv_stem import MultiConvStem
from adavit_jax.models.multi_conv_stem import multi_conv_macs
from adavit_jax.models.stem import PatchStem
from adavit_jax.models.stem import stem_macs

STREAMS = ('small', 'large')  # by the size of their patches


class CrossViT(backbone.Backbone):
  """Two streams of one image, whose class tokens attend to the other stream.

  The stream 'small' has small patches and narrow tokens, 'large' the opposite.
  In each stage, one encoder of 'small' and `depth` of 'large' run; then each
  class token attends to the patches of the other stream. Each stream has a
  head; the logits are their mean.

  Activations are a dict of both streams. Exits and policies read the stream of
  the encoder before them.

  Attributes:
    patch_sizes: side of a patch of each stream in pixels.
    scales: side of the image of each stream over `image_size`; other scales
      than 1 resize it, see `bicubic`.
    widths: token width D of each stream.
    depth: number of encoders of 'large' in each stage.
    num_heads: H of all encoders; divides both widths.
    num_stages: number of stages.
    mlp_ratio: MLP hidden width over D.
    stem: 'patch', or 'conv' for three convolutions (the dagger models).
  """
  linen = ('tokenize', 'cross', 'answer')
  patch_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  depth: int
  num_heads: int
  scales: tuple[float, ...] = (1., 1.)
  num_stages: int = 3
  mlp_ratio: float = 4.0
  stem: str = 'patch'

  def size(self, stream):
    """Side in pixels of the image of a stream, 0 or 1."""
    return round(self.image_size * self.scales[stream])

  def side(self, stream):
    """Side of the grid of patches of a stream."""
    return self.size(stream) // self.patch_sizes[stream]

  def encoder(self, stream):
    """The encoder of a stream, without parent, for `encoder.apply`."""
    width = self.widths[stream]
    return Encoder(width, self.num_heads, int(width * self.mlp_ratio),
                   self.dtype, parent=None)

  def at(self, stream):
    """`Tokens` of a stream."""
    side, width = self.side(stream), self.widths[stream]
    return backbone.Tokens(width, 1 + side * side, 1, (side, side),
                           self.num_heads, int(width * self.mlp_ratio))

  @property
  def lengths(self):
    """Number of encoders of each stream in a stage."""
    return 1, self.depth

  def setup(self):
    normal = nn.initializers.truncated_normal(0.02)
    stem = {'patch': PatchStem, 'conv': MultiConvStem}[self.stem]
    param = lambda name, i, *shape: self.param(
        f'{name}_{STREAMS[i]}', normal, (1, *shape, self.widths[i]))
    self.stems = [
        stem(width, patch, self.dtype, name=f'patch_embed_{name}')
        for name, width, patch in zip(STREAMS, self.widths, self.patch_sizes)]
    self.cls = [param('cls', i, 1) for i in range(2)]
    self.pos_embeddings = [
        param('pos_embedding', i, self.at(i).num) for i in range(2)]
    self.encoders = [
        self.param(f'encoders_{name}', encoder_lib.init_stack, self.encoder(i),
                   self.num_stages * self.lengths[i])
        for i, name in enumerate(STREAMS)]
    self.crossings = [
        [CrossAttention(self.widths[i], self.widths[1 - i], self.num_heads,
                        self.dtype, name=f'cross_{stage}_{name}')
         for i, name in enumerate(STREAMS)] for stage in range(self.num_stages)]
    self.norms = [nn.LayerNorm(epsilon=1e-6, dtype=self.dtype,
                               name=f'norm_{name}') for name in STREAMS]
    self.heads = [nn.Dense(self.num_classes, kernel_init=normal,
                           name=f'head_{name}') for name in STREAMS]

  def tokenize(self, images):
    """Images [B, S, S, C] to the tokens of both streams, with positions."""
    x = {}
    for i, name in enumerate(STREAMS):
      y = self.stems[i](bicubic.resize(images, self.size(i)))
      cls = jnp.tile(self.cls[i], (y.shape[0], 1, 1)).astype(y.dtype)
      y = jnp.concatenate([cls, y], axis=1)
      x[name] = y + self.pos_embeddings[i].astype(y.dtype)
    return x

  def cross(self, x, stage):
    """Replaces both class tokens, each with what it read in the other stream.
    """
    new = [module(x[name][:, :1], x[STREAMS[1 - i]][:, 1:])
           for i, (name, module) in enumerate(
               zip(STREAMS, self.crossings[stage]))]
    return {name: x[name].at[:, :1].set(token)
            for name, token in zip(STREAMS, new)}

  def answer(self, x):
    """Both streams to `Logits`, the mean of the two heads."""
    logits = [head(norm(x[name][:, 0]).astype(jnp.float32))
              for name, norm, head in zip(STREAMS, self.norms, self.heads)]
    return backbone.Logits(sum(logits) / 2)

  def __call__(self, images):
    """Runs all layers: normalized images [B, S, S, C] to `Logits`."""
    inputs.check_normalized(self, images)
    x = self.tokenize(images)
    for stage in range(self.num_stages):
      for i, name in enumerate(STREAMS):
        first = stage * self.lengths[i]
        rows = jax.tree.map(
            lambda p: p[first:first + self.lengths[i]], self.encoders[i])
        x[name] = encoder_lib.scan_stack(self.encoder(i), rows, x[name])
      x = self.cross(x, stage)
    return self.answer(x)

  def embed(self, params, images, ctx):
    return self.apply({'params': params}, images, method='tokenize'), {}

  def plan(self):
    items = []
    for stage in range(self.num_stages):
      for i, length in enumerate(self.lengths):
        items.append(backbone.Stack(
            f'encoders_{STREAMS[i]}', stage * length, length,
            self._branches(i), self.at(i)))
      items.append(self._bridge(stage))
    return tuple(items)

  def _branches(self, stream):
    """The branches of a stream's encoder, on the dict of both."""
    name = STREAMS[stream]
    def within(branch):
      def run(params, x, read, ctx):
        delta = branch.run(params, x[name], None, ctx)
        return backbone.Delta({name: delta.x})
      return backbone.Branch(branch.kind, run, branch.macs)
    return tuple(map(within, encoder_lib.branches(
        self.encoder(stream), self.at(stream))))

  def _bridge(self, stage):
    """The cross-attention after the encoders of a stage."""
    def run(params, x, images, ctx):
      del images, ctx
      return self.apply({'params': params}, x, stage, method='cross'), {}
    macs = sum(cross_attention_macs(
        self.at(1 - i).num - 1, self.widths[i], self.widths[1 - i])
               for i in range(2))
    return backbone.Bridge(
        run, macs, tuple(f'cross_{stage}_{name}' for name in STREAMS))

  def own_exits(self):
    params = (f'{part}_{name}' for part in ('norm', 'head') for name in STREAMS)
    return backbone.OwnExit(
        self.num_stages * sum(self.lengths),
        sum(self.widths) * self.num_classes, tuple(params)),

  def classify(self, params, x, index, ctx):
    return self.apply({'params': params}, x, method='answer'), {}

  def tokens(self, x, at):
    return x[STREAMS[at == self.at(1)]]

  @property
  def embed_macs(self):
    macs = 0
    for i, (patch, width) in enumerate(zip(self.patch_sizes, self.widths)):
      shape = self.size(i), patch, self.channels, width
      macs += (multi_conv_macs(*shape) if self.stem == 'conv'
               else stem_macs('patch', *shape))
    return macs

  def check(self):
    super().check()
    backbone.check_counts(self, 'depth', 'num_heads', 'num_stages')
    if self.stem not in ('patch', 'conv'):
      raise ValueError(f"stem={self.stem!r} must be 'patch' or 'conv'")
    if type(self.mlp_ratio) not in (int, float) or not (
        1 <= self.mlp_ratio < math.inf):
      raise ValueError(f'mlp_ratio={self.mlp_ratio!r} must be a number of at '
                       f'least 1')
    for key, kinds in dict(patch_sizes=int, widths=int,
                           scales=(int, float)).items():
      value = getattr(self, key)
      if not isinstance(value, tuple) or len(value) != 2 or not all(
          isinstance(n, kinds) and 0 < n < math.inf for n in value):
        kind = 'integers' if kinds is int else 'numbers'
        raise ValueError(f'{key}={value!r} must be a tuple of two positive '
                         f'{kind}, for the small and the large patches')
    for i, width in enumerate(self.widths):
      self._check_stream(i, width)
    if self.at(0) == self.at(1):
      raise ValueError(f'widths={self.widths} and the grids of both streams '
                       f'are equal: let one of them differ')

  def _check_stream(self, stream, width):
    size, patch = self.size(stream), self.patch_sizes[stream]
    if size % patch or size < patch:
      raise ValueError(
          f'patch_sizes={self.patch_sizes}: {patch} does not divide the '
          f'{size} pixels of image_size={self.image_size} at '
          f'scales={self.scales}')
    if width % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide {width} of '
                       f'widths={self.widths}')
    if self.stem == 'conv' and (patch not in CONVS or width % 4):
      raise ValueError(f"stem='conv' needs patch_sizes of {sorted(CONVS)} and "
                       f'widths divisible by 4, not patch_sizes='
                       f'{self.patch_sizes} and widths={self.widths}')


def _imagenet(width, depth, num_heads, mlp_ratio, image_size=240, large=224,
              stem='patch'):
  return dict(
      image_size=image_size, num_classes=1000, patch_sizes=(12, 16),
      widths=(width, 2 * width), depth=depth, num_heads=num_heads,
      scales=(1., large / image_size), mlp_ratio=mlp_ratio, stem=stem)


_DAGGER = dict(stem='conv')
_LARGE = dict(image_size=408, large=384, **_DAGGER)

MODELS = {
    'crossvit_cifar_32': dict(
        image_size=32, num_classes=10, patch_sizes=(4, 8), widths=(64, 128),
        depth=2, num_heads=4, mlp_ratio=3., num_fixed=2),
    # With timm's names.
    'crossvit_tiny_240': _imagenet(96, 4, 3, 4.),
    'crossvit_small_240': _imagenet(192, 4, 6, 4.),
    'crossvit_base_240': _imagenet(384, 4, 12, 4.),
    'crossvit_9_240': _imagenet(128, 3, 4, 3.),
    'crossvit_15_240': _imagenet(192, 5, 6, 3.),
    'crossvit_18_240': _imagenet(224, 6, 7, 3.),
    'crossvit_9_dagger_240': _imagenet(128, 3, 4, 3., **_DAGGER),
    'crossvit_15_dagger_240': _imagenet(192, 5, 6, 3., **_DAGGER),
    'crossvit_18_dagger_240': _imagenet(224, 6, 7, 3., **_DAGGER),
    'crossvit_15_dagger_408': _imagenet(192, 5, 6, 3., **_LARGE),
    'crossvit_18_dagger_408': _imagenet(224, 6, 7, 3., **_LARGE),
}
