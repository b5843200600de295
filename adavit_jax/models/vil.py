"""Vision Longformer (Zhang et al., 2021, arXiv:2103.15358): ViL."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import vil_stage


class ViL(backbone.Backbone):
  """Stages of encoders on smaller and smaller grids, with local attention.

  Each stage embeds the grid of the one before it again, in patches, and adds
  its own global tokens; those of the stage before are dropped. A stage with a
  window attends within neighboring chunks of the grid, see `sliding_chunks`.
  The head reads the first global token of the last stage, or the mean over the
  tokens if the stage has none.

  `vil_arch.parse` gives the attributes of an architecture of the authors.

  Attributes:
    widths: D of each stage.
    depths: number of encoders of each stage.
    heads: H of each stage.
    patch_sizes: side of the patches that each stage embeds.
    windows: W of each stage, the side of a chunk; 0 for full attention.
    num_globals: g, number of global tokens of each stage.
    relative: whether each stage has relative biases in its attention instead of
      absolute positions.
    exact_windows: whether tokens only attend to W rows and columns to each side
      instead of whole chunks.
    random_shift: share of the steps of a phase with `Context.progress` in which
      each chunk sees only one of its eight neighbors, sampled per encoder and
      step.
  """
  unsaved = ('windows',)  # they grow with the image
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  patch_sizes: tuple[int, ...]
  windows: tuple[int, ...]
  num_globals: tuple[int, ...]
  relative: tuple[bool, ...]
  exact_windows: bool = False
  random_shift: float = 0.

  @property
  def num_stages(self):
    return len(self.widths)

  def side(self, index):
    """Side of the grid of tokens in a stage."""
    side = self.image_size
    for size in self.patch_sizes[:index + 1]:
      side //= size
    return side

  def stage(self, index):
    """`vil_stage.Stage`."""
    return vil_stage.Stage(
        self.side(index), self.widths[index], self.heads[index],
        self.patch_sizes[index], self.windows[index], self.num_globals[index],
        self.relative[index], self.exact_windows)

  def stages(self):
    """List of `vil_stage.Stage`s."""
    return [self.stage(i) for i in range(self.num_stages)]

  def init_variables(self, key):
    params, channels = {}, self.channels
    keys = iter(jax.random.split(key, 2 * self.num_stages + 1))
    for i, (stage, depth) in enumerate(zip(self.stages(), self.depths)):
      params[f'embed_{i}'] = vil_stage.init_embed(next(keys), stage, channels)
      params[f'encoders_{i}'] = vil_stage.init_encoders(
          next(keys), stage, depth)
      channels = stage.width
    normal = nn.initializers.truncated_normal(0.02)
    params['norm'] = dict(scale=jnp.ones(channels), bias=jnp.zeros(channels))
    params['head'] = dict(
        kernel=normal(next(keys), (channels, self.num_classes)),
        bias=jnp.zeros(self.num_classes))
    return params, {}

  def _embed(self, params, x, index):
    """Embeds images or a grid [B, S, S, C]: the tokens of a stage [B, N, D]."""
    module = vil_stage.Embed(self.stage(index), self.dtype, parent=None)
    return module.apply({'params': params[f'embed_{index}']}, x)

  def embed(self, params, images, ctx):
    return self._embed(params, images, 0), {}

  def plan(self):
    items = []
    for i, (stage, depth) in enumerate(zip(self.stages(), self.depths)):
      if i:
        items.append(self._bridge(i))
      items.append(backbone.Stack(
          f'encoders_{i}', 0, depth,
          vil_stage.branches(stage, self.dtype, self.random_shift),
          stage.tokens()))
    return tuple(items)

  def _bridge(self, index):
    """The embedding before a stage, of the grid of the stage before it."""
    before = self.stage(index - 1)
    def run(params, x, images, ctx):
      del images, ctx
      grid = x[:, before.num_global:].reshape(
          -1, before.side, before.side, before.width)
      return self._embed(params, grid, index), {}
    macs = vil_stage.embed_macs(self.stage(index), before.width)
    return backbone.Bridge(run, macs, (f'embed_{index}',))

  def own_exits(self):
    return backbone.OwnExit(
        sum(self.depths), self.widths[-1] * self.num_classes,
        ('norm', 'head')),

  def classify(self, params, x, index, ctx):
    del index, ctx
    norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, parent=None)
    x = norm.apply({'params': params['norm']}, x).astype(jnp.float32)
    x = x[:, 0] if self.num_globals[-1] else x.mean(1)
    head = params['head']
    return backbone.Logits(x @ head['kernel'] + head['bias']), {}

  def fold(self, params, stats):
    del stats
    return {**params, **{
        f'encoders_{i}': vil_stage.fold(stage, params[f'encoders_{i}'])
        for i, stage in enumerate(self.stages())}}

  @property
  def embed_macs(self):
    return vil_stage.embed_macs(self.stage(0), self.channels)

  def check(self):
    super().check()
    backbone.check_stages(self, 'widths', 'depths', 'heads', 'patch_sizes')
    backbone.check_stages(self, 'windows', 'num_globals', least=0)
    relative = self.relative
    if (not isinstance(relative, tuple) or len(relative) != len(self.widths)
        or not all(isinstance(value, bool) for value in relative)):
      raise ValueError(f'relative={relative!r} must be a tuple of True or '
                       f'False, one for each stage, as widths={self.widths!r}')
    if not isinstance(self.exact_windows, bool):
      raise ValueError(f'exact_windows={self.exact_windows!r} must be True or '
                       f'False')
    if type(self.random_shift) not in (int, float) or not (
        0 <= self.random_shift <= 1):
      raise ValueError(f'random_shift={self.random_shift!r} must be a share of '
                       f'the steps, in [0, 1]')
    for i, (width, num, relative) in enumerate(
        zip(self.widths, self.heads, self.relative)):
      if width % num:
        raise ValueError(f'heads={self.heads}: {num} does not divide {width} '
                         f'of widths={self.widths}')
      if width % 2 and not relative:
        raise ValueError(f'widths={self.widths}: {width} must be even, since '
                         f'half of a position is that of the row')
      before = self.side(i - 1) if i else self.image_size
      if before % self.patch_sizes[i] or before < self.patch_sizes[i]:
        raise ValueError(
            f'patch_sizes={self.patch_sizes}: {self.patch_sizes[i]} does not '
            f'divide the side {before} before stage {i}, with image_size='
            f'{self.image_size}')
