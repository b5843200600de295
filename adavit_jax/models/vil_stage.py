"""One stage of Vision Longformer: its embedding, and its encoders."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import sliding_chunks
from adavit_jax.models import vil_bias
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.stem import PatchStem

MLP_RATIO = 4
# Folded biases, see `fold`.
_FOLDED, _FOLDED_GLOBAL = 'biases', 'biases_global'


class Stage(NamedTuple):
  """The shapes of a stage.

  Attributes:
    side: of the grid of tokens.
    width: D.
    num_heads: H.
    patch_size: side of a patch of what is embedded.
    window: W, see `sliding_chunks`; 0 for full attention.
    num_global: g.
    relative: whether relative biases take the place of absolute positions.
    exact: see `sliding_chunks.Layout`.
  """
  side: int
  width: int
  num_heads: int
  patch_size: int
  window: int
  num_global: int
  relative: bool
  exact: bool

  @property
  def layout(self):
    """`sliding_chunks.Layout` of its tokens."""
    return sliding_chunks.Layout(
        self.side, self.side, self.window, self.num_global, self.exact)

  @property
  def tables(self):
    """{name: shape} of the tables of biases in an encoder."""
    return vil_bias.shapes(self.side, self.window, self.num_heads,
                           self.num_global) if self.relative else {}

  def tokens(self):
    """`Tokens` in the stage."""
    return backbone.Tokens(
        self.width, self.layout.num_tokens, self.num_global,
        (self.side, self.side), self.num_heads, MLP_RATIO * self.width)


class Embed(nn.Module):
  """Makes the tokens of a stage of an image, or of the grid before it.

  Attributes:
    stage: `Stage`.
    dtype: compute dtype.
  """
  stage: Stage
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[B, S, S, C] -> [B, N, D], global tokens first."""
    s, normal = self.stage, nn.initializers.truncated_normal(0.02)
    param = lambda name, num, width=s.width: self.param(
        name, normal, (1, num, width)).astype(self.dtype)
    x = PatchStem(s.width, s.patch_size, self.dtype, name='patches')(x)
    x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x)
    if not s.relative:
      rows, columns = (param(f'positions_{name}', s.side, s.width // 2)
                       for name in ('rows', 'columns'))
      shape = (1, s.side, s.side, s.width // 2)
      positions = jnp.concatenate(
          [jnp.broadcast_to(rows[:, :, None], shape),
           jnp.broadcast_to(columns[:, None], shape)], axis=-1)
      x += positions.reshape(1, -1, s.width)
    if not s.num_global:
      return x
    tokens = param('tokens', s.num_global)
    if not s.relative:
      tokens += param('positions_tokens', s.num_global)
    tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[1:]))
    return jnp.concatenate([tokens, x], axis=1)


def init_embed(key, stage, channels):
  """Initializes the parameters of `Embed` for a grid of `channels`."""
  side = stage.side * stage.patch_size
  return Embed(stage, parent=None).init(
      key, jnp.zeros((1, side, side, channels)))['params']


def embed_macs(stage, channels):
  """MACs of `Embed` on one image, or grid of `channels`."""
  return stage.side**2 * stage.patch_size**2 * channels * stage.width


def encoder(stage, dtype):
  """The encoder of a stage, without parent, for `encoder.apply`."""
  return Encoder(stage.width, stage.num_heads, MLP_RATIO * stage.width, dtype,
                 parent=None)


@functools.partial(jax.jit, static_argnums=(1, 2))
def init_encoders(key, stage, num):
  """Initializes `num` encoders of a stage and their tables of biases."""
  params = encoder_lib.init_stack(key, encoder(stage, jnp.float32), num)
  normal = nn.initializers.truncated_normal(0.02)
  for i, (name, shape) in enumerate(stage.tables.items()):
    params[name] = normal(jax.random.fold_in(key, num + i), (num, *shape))
  return params


def branches(stage, dtype, random_shift=0.):
  """The two branches of an encoder for a plan.

  Args:
    stage: `Stage`.
    dtype: compute dtype.
    random_shift: share of the training with one neighboring chunk at random,
      see `Context.progress`.

  Returns:
    (MSA `Branch`, MLP `Branch`).
  """
  module = encoder(stage, dtype)
  _, mlp = encoder_lib.branches(module, stage.tokens())

  def msa(params, x, read, ctx):
    del read
    attend = functools.partial(_attend, stage, random_shift, params, ctx)
    return backbone.Delta(
        module.apply({'params': params}, x, attend, method='msa_with'))

  return backbone.Branch('msa', msa, msa_macs(stage)), mlp


def _attend(stage, random_shift, params, ctx, q, k, v):
  """Attention of a stage, see `Encoder.msa_with`."""
  biases = _biases(stage, params)
  if not stage.window:
    logits = encoder_lib.attention_logits(q, k)
    return encoder_lib.attend(
        logits if biases is None else logits + biases, v)
  run = functools.partial(
      sliding_chunks.sliding_attention, q, k, v, stage.layout, biases)
  shifts = random_shift and ctx.train and ctx.key is not None
  if not shifts or ctx.progress is None:
    return run()
  drawn = jax.random.randint(ctx.key, (), 0, 8)
  return jax.lax.cond(ctx.progress < random_shift, lambda: run(drawn=drawn),
                      run)


def _biases(stage, params):
  """What is added to the logits: one array if attention is full, else two."""
  if not stage.relative:
    return None
  if _FOLDED not in params:
    params = fold(stage, params)
  if not stage.window:
    return params[_FOLDED]
  return params[_FOLDED], params.get(_FOLDED_GLOBAL)


def fold(stage, params):
  """Looks up the biases of encoders, which takes the place of their tables."""
  if not stage.relative:
    return params
  folded = {k: x for k, x in params.items() if k not in stage.tables}
  if not stage.window:
    return {**folded, _FOLDED: vil_bias.full(params, stage.side)}
  folded[_FOLDED] = vil_bias.local(params, stage.window)
  if stage.num_global:
    folded[_FOLDED_GLOBAL] = vil_bias.of_global(params, stage.side**2)
  return folded


def msa_macs(stage):
  """MACs of the branch MSA on one image."""
  n, d = stage.layout.num_tokens, stage.width
  if not stage.window:
    return encoder_lib.macs(n, d, 0)[0]
  return 4 * n * d * d + sliding_chunks.sliding_macs(stage.layout, d)
