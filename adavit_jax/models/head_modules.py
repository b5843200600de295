"""The seven exit heads of Multi-Exit ViT (BMVC 2021, arXiv 2106.15183).

Each head reads the output tokens of an encoder and computes early logits. The
names are those of the paper. Its official code was not available to us, so
layers and widths follow public ports. Where the ports differ, we follow the
definition behind the name:

* CNN-Project uses the read-out of DPT; a port convolves 2 D channels at once.
* ResMLP has the linear layer over patches; a port has none.
* One linear layer follows the convolutions; a port has an MLP.

Our own choices are a LayerNorm at the start of each head, since the tokens of a
pre-LN backbone are not normalized, no dropout, and the mean over prefix tokens.
Heads share no parameters. If a backbone has no class token, the mean over all
tokens is used instead.
"""

import flax.linen as nn
import jax.numpy as jnp

from adavit_jax.models.backbone import Tokens
from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import columns
from adavit_jax.models.encoder import gelu

FILTERS = 16  # output channels of the 3x3 convolution in the CNN heads


class ExitHead(nn.Module):
  """Base class with the check of the input and the last linear layer.

  A subclass implements `features`. For models with a distillation token, "class
  token" means the mean of both tokens, taken after normalization.

  Attributes:
    at: `Tokens` of the place: P prefix tokens, then n patches.
    num_outputs: K, number of classes, or 1 for regression.
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

  @property
  def num_read(self):
    """Number of leading tokens that the head reads; None for all."""
    return None

  @nn.compact
  def __call__(self, tokens):
    """Tokens [B, P + n, D], patches row-major, to [B, K] float32.

    Only the first `num_read` of the tokens need be given.

    Raises:
      ValueError: if the number or width of the tokens is wrong.
    """
    shape = (self.at.num, self.width)
    fits = shape, (self.num_read or shape[0], self.width)
    if tokens.ndim != 3 or tokens.shape[1:] not in fits:
      raise ValueError(
          f'tokens have shape {tuple(tokens.shape)}, but the head takes '
          f'[B, {shape[0]}, {shape[1]}]: {self.num_prefix} prefix tokens and '
          f'{shape[0] - self.num_prefix} patches; give all tokens of its place')
    x = self.features(tokens).astype(jnp.float32)
    return nn.Dense(self.num_outputs, name='head',
                    kernel_init=nn.initializers.truncated_normal(0.02))(x)

  def features(self, tokens):
    """[B, P + n, D] -> [B, F], the input of the last linear layer."""
    raise NotImplementedError

  @property
  def num_needed(self):
    """Number of tokens to compute in a head that ends in the class token.

    P after initialization; all (None) during it or without a prefix.
    """
    return None if self.is_initializing() else self.num_prefix or None

  def norm(self, name='norm'):
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

  def class_token(self, tokens):
    """[B, P + n, D] -> [B, D]."""
    return tokens[:, :self.num_prefix or None].mean(1)


class MlpHead(ExitHead):
  """MLP-EE: an MLP on the class token, D -> 4 D -> D -> K with GELU."""

  @property
  def num_read(self):
    return self.num_prefix or None

  def features(self, tokens):
    x = self.class_token(self.norm()(tokens[:, :self.num_read]))
    return gelu(Mlp(4 * self.width, self.width, self.dtype, name='mlp')(x))


class CnnIgnoreHead(ExitHead):
  """CNN-Ignore-EE: convolves the grid of patches, without the class token.

  3x3 convolution to 16 channels, ELU, 2x2 max pooling, and one linear layer
  over the flattened result. An odd last row or column is pooled alone.
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

  Each patch is concatenated with the class token and mapped 2 D -> D with GELU:
  the operator "project" of DPT (arXiv 2103.13413).
  """

  def read(self, cls, patches):
    x = jnp.concatenate(
        [patches, jnp.broadcast_to(cls, patches.shape)], axis=-1)
    return gelu(_dense(self.width, self.dtype, 'project')(x))


class VitHead(ExitHead):
  """ViT-EE: one more encoder, then the class token as in the backbone.

  The first LayerNorm is that of the encoder. Keys and values are computed for
  all tokens; queries, attention, projection and MLP only for prefix tokens.
  """

  def features(self, tokens):
    encoder = Encoder(self.width, self.at.num_heads, self.at.mlp_dim,
                      self.dtype, name='encoder')
    return self.class_token(self.norm()(encoder(tokens, self.num_needed)))


class MlpMixerHead(ExitHead):
  """MLP-Mixer-EE: one Mixer block over all tokens, then the class token.

  Both MLPs have hidden width 4 D, also the one over the N = P + n tokens, as in
  the only port that has this head; in the Mixer paper it is D / 2. The output
  of the token MLP and the channel MLP are computed only for prefix tokens, so
  the output weights of other tokens are unused. The GELU over the 4 D x D
  hidden units of the token MLP takes more time than the MACs suggest.
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

  The block follows its paper: a per-channel affine map instead of LayerNorm,
  one n x n linear layer over patches and an MLP of hidden width 4 D, both with
  LayerScale initialized to 0.1 as in the shallow networks of the paper.
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
    """A parameter [D] initialized to `value`, as [1, 1, D]."""
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
    """[..., F] -> [..., width], or only the first `read` outputs."""
    x = gelu(_dense(self.hidden, self.dtype, 'fc1')(x))
    last = _dense(self.width, self.dtype, 'fc2')
    return last(x) if read is None else columns(last, x, 0, read)


def _dense(features, dtype, name):
  return nn.Dense(features, dtype=dtype, name=name,
                  kernel_init=nn.initializers.xavier_uniform())
