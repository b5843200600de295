"""The seven exit heads of Multi-Exit ViT (BMVC 2021, arXiv 2106.15183).

Each reads the tokens that leave an encoder and gives an early answer. The seven
names are the paper's; its official code could not be read, and layers and
widths are those on which public ports agree. Where they do not agree, the form
that defines the name is taken: DPT's read-out for CNN-Project (a port convolves
2 D channels at once), ResMLP's layer over the patches (a port has none), one
linear layer after the convolutions (a port has an MLP). Ours are the LayerNorm
that each head opens with, since a pre-LN backbone hands on tokens that nothing
has normalised, no dropout, and the mean over prefix tokens. Heads share no
parameters. Where a backbone has no class token, the mean over all tokens stands
in for it.
"""

import difflib

import flax.linen as nn
import jax.numpy as jnp

from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models.backbone import Tokens
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import columns
from adavit_jax.models.encoder import gelu

FILTERS = 16  # of the 3x3 convolution in the CNN heads


class ExitHead(nn.Module):
  """What the heads have in common: attributes, check and last linear layer.

  A subclass gives `features`. "The class token" of a model with a distillation
  token is the mean of both, normalised before it is taken.

  Attributes:
    at: `Tokens` of the place: P prefix tokens, then n patches.
    num_outputs: K, classes, or 1 for regression.
    dtype: compute dtype; parameters, last layer and logits are float32.
  """
  at: Tokens
  num_outputs: int
  dtype: jnp.dtype = jnp.float32

  @property
  def width(self):
    """D."""
    return self.at.width

  @property
  def num_prefix(self):
    """P."""
    return self.at.prefix

  @nn.compact
  def __call__(self, tokens):
    """Tokens [B, P + n, D], patches row-major, to [B, K] float32.

    Raises:
      ValueError: if the tokens are not as many or as wide as the head expects.
    """
    shape = (self.at.num, self.width)
    if tokens.ndim != 3 or tokens.shape[1:] != shape:
      raise ValueError(
          f'tokens have shape {tuple(tokens.shape)}, the head takes '
          f'[B, {shape[0]}, {shape[1]}]: {self.num_prefix} prefix tokens and '
          f'{shape[0] - self.num_prefix} patches; give all tokens of the place '
          f'it was made for')
    x = self.features(tokens).astype(jnp.float32)
    return nn.Dense(self.num_outputs, name='head',
                    kernel_init=nn.initializers.truncated_normal(0.02))(x)

  def features(self, tokens):
    """[B, P + n, D] to the [B, F] that the last linear layer reads."""
    raise NotImplementedError

  @property
  def num_needed(self):
    """P, the tokens to compute in a head that ends in the class token.

    None, for all, during initialisation, and where there is no prefix.
    """
    return None if self.is_initializing() else self.num_prefix or None

  def norm(self, name='norm'):
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

  def class_token(self, tokens):
    """[B, P + n, D] -> [B, D]."""
    return tokens[:, :self.num_prefix or None].mean(1)


class MlpHead(ExitHead):
  """MLP-EE: the class token alone, D -> 4 D -> D -> K with GELU."""

  def features(self, tokens):
    x = self.class_token(self.norm()(tokens[:, :self.num_prefix or None]))
    return gelu(Mlp(4 * self.width, self.width, self.dtype, name='mlp')(x))


class CnnIgnoreHead(ExitHead):
  """CNN-Ignore-EE: the patches as an image, without the class token.

  3x3 convolution to 16 channels, ELU, 2x2 max pooling, one linear layer over
  what remains. An odd row or column of the grid is pooled with itself.
  """

  def features(self, tokens):
    x = self.norm()(tokens)
    x = self.read(self.class_token(x)[:, None], x[:, self.num_prefix:])
    x = x.reshape(-1, *self.at.grid, self.width)  # [B, gh, gw, D]
    x = nn.Conv(FILTERS, (3, 3), dtype=self.dtype, name='conv')(x)
    x = nn.max_pool(nn.elu(x), (2, 2), (2, 2), padding='SAME')
    return x.reshape(x.shape[0], -1)

  def read(self, cls, patches):
    """Class token [B, 1, D] and patches [B, n, D] to new patches [B, n, D]."""
    del cls
    return patches


class CnnAddHead(CnnIgnoreHead):
  """CNN-Add-EE: CNN-Ignore-EE with the class token added to every patch."""

  def read(self, cls, patches):
    return patches + cls


class CnnProjectHead(CnnIgnoreHead):
  """CNN-Project-EE: CNN-Ignore-EE with the class token projected in.

  Every patch with the class token beside it goes through 2 D -> D and GELU, the
  operator of that name in DPT (arXiv 2103.13413).
  """

  def read(self, cls, patches):
    x = jnp.concatenate(
        [patches, jnp.broadcast_to(cls, patches.shape)], axis=-1)
    return gelu(_dense(self.width, self.dtype, 'project')(x))


class VitHead(ExitHead):
  """ViT-EE: one more encoder, then the class token as in the backbone.

  The opening LayerNorm is that of the encoder. Keys and values are of all
  tokens; queries, attention, projection and MLP of the prefix tokens alone.
  """

  def features(self, tokens):
    encoder = Encoder(self.width, self.at.num_heads, self.at.mlp_dim,
                      self.dtype, name='encoder')
    return self.class_token(self.norm()(encoder(tokens, self.num_needed)))


class MlpMixerHead(ExitHead):
  """MLP-Mixer-EE: one Mixer block over all tokens, then the class token.

  Both MLPs are 4 D wide, that over the N = P + n tokens too, as in the one port
  that has it; the Mixer's own is D / 2. Outputs of the token MLP, and the
  channel MLP, are computed for the prefix tokens alone, so the weights of the
  others go unused. GELU of the token MLP's 4 D x D hidden units costs more time
  than its MACs tell.
  """

  def features(self, tokens):
    hidden, num_tokens = 4 * self.width, tokens.shape[1]
    needed = self.num_needed
    y = self.norm('norm1')(tokens).swapaxes(1, 2)  # [B, D, N]
    y = Mlp(hidden, num_tokens, self.dtype, name='token_mlp')(y, needed)
    x = tokens[:, :needed] + y.swapaxes(1, 2)
    y = self.norm('norm2')(x)
    x = x + Mlp(hidden, self.width, self.dtype, name='channel_mlp')(y)
    return self.class_token(self.norm()(x))


class ResMlpHead(ExitHead):
  """ResMLP-EE: one ResMLP block (arXiv 2105.03404) and the mean over patches.

  The block is that of its paper: an affine map of the channels where others
  have a LayerNorm, one n x n layer over the patches, an MLP 4 D wide, both with
  LayerScale, which starts at 0.1 as in the paper's shallow networks.
  """

  def features(self, tokens):
    x = tokens[:, self.num_prefix:]
    y = self.affine('affine1', x).swapaxes(1, 2)  # [B, D, n]
    y = _dense(y.shape[-1], self.dtype, 'patch_mix')(y)
    x = x + self.channels('scale1', 0.1) * y.swapaxes(1, 2)
    y = self.affine('affine2', x)
    y = Mlp(4 * self.width, self.width, self.dtype, name='channel_mlp')(y)
    x = x + self.channels('scale2', 0.1) * y
    return self.affine('affine', x).mean(1)

  def affine(self, name, x):
    shift = self.channels(f'{name}_shift', 0.)
    return self.channels(f'{name}_scale', 1.) * x + shift

  def channels(self, name, value):
    """A parameter [D] that starts at a value, as [1, 1, D]."""
    init = nn.initializers.constant(value)
    param = self.param(name, init, (self.width,), jnp.float32)
    return param.astype(self.dtype)[None, None]


class Mlp(nn.Module):
  """Linear, GELU, linear over the last axis.

  Attributes:
    hidden: width between the layers.
    width: output width.
    dtype: compute dtype; parameters are float32.
  """
  hidden: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, read=None):
    """[..., F] -> [..., width], or the first `read` of these alone."""
    x = gelu(_dense(self.hidden, self.dtype, 'fc1')(x))
    last = _dense(self.width, self.dtype, 'fc2')
    return last(x) if read is None else columns(last, x, 0, read)


def _dense(features, dtype, name):
  return nn.Dense(features, dtype=dtype, name=name,
                  kernel_init=nn.initializers.xavier_uniform())


HEADS = {
    'mlp': MlpHead,
    'cnn_ignore': CnnIgnoreHead,
    'cnn_add': CnnAddHead,
    'cnn_project': CnnProjectHead,
    'vit': VitHead,
    'mlp_mixer': MlpMixerHead,
    'resmlp': ResMlpHead,
}


def check_name(head):
  """Raises a ValueError unless `head` is a name in `HEADS`."""
  if head not in HEADS:
    close = difflib.get_close_matches(str(head), HEADS, n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {list(HEADS)}'
    raise ValueError(f'unknown exit head {head!r}; {hint}')


def check_place(head, at):
  """Raises a ValueError if the tokens of a place do not fit a head.

  Args:
    head: one of `HEADS`.
    at: `Tokens`.
  """
  check_name(head)
  if head == 'vit' and at.width % at.num_heads:
    raise ValueError(f"exit head 'vit': num_heads={at.num_heads} of its place "
                     f'does not divide width={at.width}')
  if at.grid is None and issubclass(HEADS[head], CnnIgnoreHead):
    raise ValueError(f'exit head {head!r} convolves, and the tokens of its '
                     f'place lie on no raster; choose one of '
                     f"{[h for h in HEADS if 'cnn' not in h]}")


def create(head, at, num_outputs, *, dtype=jnp.float32, name=None):
  """Creates an exit head for the tokens of a place.

  Made in a module's `setup` or compact method it is a submodule of it.

  Args:
    head: one of `HEADS`.
    at: `Tokens` of the place.
    num_outputs: K, classes, or 1 for regression.
    dtype: compute dtype.
    name: of the submodule, as in Flax.

  Returns:
    `ExitHead`.

  Raises:
    ValueError: for another head, one that does not fit the place, or fewer
      than one output.
  """
  check_place(head, at)
  if num_outputs < 1:
    raise ValueError(f'num_outputs={num_outputs} must be at least 1')
  return HEADS[head](at=at, num_outputs=num_outputs, dtype=dtype, name=name)


def head_macs(name, at, num_outputs):
  """MACs of one image in an exit head, convolutions with their zero padding.

  Of 'vit' and 'mlp_mixer' only what their class token needs is computed, in
  training too, and counted.

  Args:
    name: one of `HEADS`.
    at: `Tokens` that it reads.
    num_outputs: K.

  Returns:
    int.

  Raises:
    ValueError: for another name.
  """
  check_name(name)
  d, n, p = at.width, at.num, at.prefix
  patches, needed = n - p, p or n
  last = d * num_outputs
  channels = 2 * 4 * d * d  # of one token, D -> 4 D -> D

  if name == 'mlp':
    return channels + last
  if name == 'vit':
    unread = sum(encoder_lib.unread_macs(n, needed, d, at.mlp_dim))
    return sum(encoder_lib.macs(n, d, at.mlp_dim)) - unread + last
  if name == 'mlp_mixer':
    return d * (n + needed) * 4 * d + needed * channels + last
  if name == 'resmlp':
    return d * patches * patches + patches * channels + last

  gh, gw = at.grid
  pooled = ((gh + 1) // 2) * ((gw + 1) // 2)
  project = patches * 2 * d * d if name == 'cnn_project' else 0
  return (project + patches * 9 * d * FILTERS
          + pooled * FILTERS * num_outputs)
