"""Vision transformer with M fixed and L = N - M adaptive encoders."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models.encoder import Encoder
from adavit_jax.models.encoder import init_stack
from adavit_jax.models.encoder import run_stack
from adavit_jax.models.stem import ConvStem
from adavit_jax.models.stem import PatchStem


class Logits(NamedTuple):
  """Class scores of the two heads.

  Attributes:
    cls: [B, K] from the class token.
    dist: [B, K] from the distillation token, or None without one.
  """
  cls: jax.Array
  dist: jax.Array | None

  @property
  def total(self):
    """Scores used at inference: the sum of the heads (US 12,394,190, fig. 3B).

    Returns:
      [B, K] float32.
    """
    return self.cls if self.dist is None else self.cls + self.dist


class ViT(nn.Module):
  """Pre-LN ViT / DeiT whose encoders can be run one branch at a time.

  The module owns the parameters; `adavit_jax.runtime` decides which encoders
  run. Encoder parameters are stacked on a leading layer axis in two groups,
  `fixed` [M, ...] and `adaptive` [L, ...].

  Attributes:
    image_size: side S of the square input in pixels.
    patch_size: side of a patch; divides `image_size`.
    channels: input channels C.
    num_classes: K.
    width: token width D.
    depth: number of encoders, fixed and adaptive together.
    num_fixed: M, 1 to 3: encoders that always run.
    num_heads: H; divides `width`.
    mlp_ratio: MLP hidden width over D.
    stem: 'patch' or 'conv'.
    distillation: adds the distillation token and its head (DeiT).
    weights: file that `adavit_jax.init_params` reads; '' initialises.
    dtype: compute dtype; parameters, softmax and logits are float32.
  """
  image_size: int
  patch_size: int
  num_classes: int
  width: int
  depth: int
  num_heads: int
  channels: int = 3
  num_fixed: int = 1
  mlp_ratio: float = 4.0
  stem: str = 'patch'
  distillation: bool = False
  weights: str = ''
  dtype: jnp.dtype = jnp.float32

  @property
  def num_adaptive(self):
    """L, the number of encoders that a policy may drop."""
    return self.depth - self.num_fixed

  @property
  def num_prefix(self):
    """Tokens before the patches: class, and distillation where present."""
    return 1 + self.distillation

  @property
  def num_tokens(self):
    """N, all tokens of one image."""
    return self.num_prefix + (self.image_size // self.patch_size) ** 2

  @property
  def mlp_dim(self):
    return int(self.width * self.mlp_ratio)

  @property
  def encoder(self):
    """The encoder as a free-standing module, for `encoder.apply`."""
    return Encoder(self.width, self.num_heads, self.mlp_dim, self.dtype,
                   parent=None)

  def setup(self):
    stem = {'patch': PatchStem, 'conv': ConvStem}[self.stem]
    self.patch_embed = stem(self.width, self.patch_size, self.dtype)
    normal = nn.initializers.truncated_normal(0.02, jnp.float32)
    self.cls = self.param('cls', normal, (1, 1, self.width))
    if self.distillation:
      self.dist = self.param('dist', normal, (1, 1, self.width))
    self.pos_embedding = self.param(
        'pos_embedding', normal, (1, self.num_tokens, self.width))
    self.fixed = self.param('fixed', init_stack, self.encoder, self.num_fixed)
    self.adaptive = self.param(
        'adaptive', init_stack, self.encoder, self.num_adaptive)
    self.norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.head = nn.Dense(self.num_classes, kernel_init=normal)
    if self.distillation:
      self.head_dist = nn.Dense(self.num_classes, kernel_init=normal)

  def embed(self, images):
    """Images [B, S, S, C] to tokens [B, N, D], position embedding added.

    Raises:
      ValueError: as `check_normalized`.
    """
    check_normalized(self, images)
    x = self.patch_embed(images)
    prefix = [self.cls, self.dist] if self.distillation else [self.cls]
    prefix = [jnp.tile(t, (x.shape[0], 1, 1)).astype(x.dtype) for t in prefix]
    x = jnp.concatenate([*prefix, x], axis=1)
    return x + self.pos_embedding.astype(x.dtype)

  def classify(self, prefix):
    """Prefix tokens [..., P, D] of an encoder's output to `Logits`."""
    x = self.norm(prefix).astype(jnp.float32)
    dist = self.head_dist(x[..., 1, :]) if self.distillation else None
    return Logits(self.head(x[..., 0, :]), dist)

  def encode(self, x, start=0, stop=None, *, read=None, **options):
    """Runs some of the N encoders, fixed and adaptive counted together.

    Args:
      x: tokens [B, N, D].
      start: number of the first encoder, from 0.
      stop: one past the last; None for all that are left.
      read: how many of the first tokens the caller reads; None for all.
      **options: unroll, remat and inference; all as in `run_stack`.

    Returns:
      [B, N, D], or [B, read, D].
    """
    stop, m = self.depth if stop is None else stop, self.num_fixed
    run = functools.partial(run_stack, self.encoder, **options)
    if start < m:
      x = run(self.fixed, x, start, min(stop, m),
              read=read if stop <= m else None)
    if stop > m:
      x = run(self.adaptive, x, max(start - m, 0), stop - m, read=read)
    return x[:, :read]

  def __call__(self, images, **options):
    """All encoders: the plain ViT.

    Args:
      images: [B, S, S, C], normalised.
      **options: unroll, remat and inference, see `run_stack`. For inference,
        the last encoder computes the prefix tokens alone, all that is read.

    Returns:
      `Logits`.
    """
    read = self.num_prefix if options.get('inference') else None
    x = self.encode(self.embed(images), read=read, **options)
    return self.classify(x[:, :self.num_prefix])


def init_params(model, key):
  """Initialises the float32 parameter tree of `model`; reads no weights.

  Raises:
    ValueError: if `key` is no single PRNG key.
  """
  dtype = getattr(key, 'dtype', np.dtype(object))
  typed = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
  if not (typed or dtype == np.uint32) or np.shape(key) != (
      () if typed else (2,)):
    raise ValueError(f'key={key!r} is not one PRNG key; give '
                     f'jax.random.key(0), or one of those of a split')
  return _init(model, key)


# Jitted once for all calls: a model is asked for its parameters' shapes often.
@functools.partial(jax.jit, static_argnums=0)
def _init(model, key):
  shape = (1, model.image_size, model.image_size, model.channels)
  return model.init(key, jnp.zeros(shape))['params']


def check_images(model, images):
  """Raises a ValueError unless `model` takes `images`: [B, S, S, C], B >= 1.
  """
  s, c = model.image_size, model.channels
  if not hasattr(images, 'ndim'):
    raise ValueError(f'images are a {type(images).__name__}; give an array '
                     f'[B, {s}, {s}, {c}], np.stack(images) for example')
  if images.ndim != 4 or images.shape[1:] != (s, s, c):
    shape = tuple(images.shape)
    if shape == (s, s, c):
      hint = 'give one image as image[None]'
    elif shape[-2:] == (s, s):
      hint = 'give grey images as images[..., None]' if len(shape) < 4 else (
          'give the channels as the last axis')
    elif shape[1:3] == (s, s):
      hint = f'it was made for {c} channels'
    elif len(shape) == 4 and shape[1] == shape[2]:
      hint = f'resize them, or create the model with image_size={shape[1]}'
    else:
      hint = ('resize and crop them to squares; `read` of the classifier of '
              'adavit_jax.load gives a file as such')
    raise ValueError(f'images have shape {shape}, the model takes [B, {s}, '
                     f'{s}, {c}]; {hint}')
  # Not len: the batch axis of an exported program may have no size.
  if images.shape[0] == 0:
    raise ValueError(f'images have shape {tuple(images.shape)}: give B >= 1 of '
                     f'them')


def check_normalized(model, images):
  """Raises a ValueError for whole numbers, or as `check_images`."""
  check_images(model, images)
  if jnp.issubdtype(images.dtype, jnp.integer):
    raise ValueError(f'images are {images.dtype}; the model takes normalised '
                     f'floats, pixels are for the classifier of '
                     f'adavit_jax.load')


def as_pixels(model, images):
  """Images as an array, if they are uint8 [B, S, S, C] that `model` takes.

  Raises:
    ValueError: if not, as `check_images`, or they are no array at all.
  """
  try:
    images = np.asarray(images)
  except ValueError as e:
    s, c = model.image_size, model.channels
    raise ValueError(f'images make no array ({e}); resize and crop each to '
                     f'[{s}, {s}, {c}], or give what `read` of the classifier '
                     f'of adavit_jax.load makes of their files') from e
  check_images(model, images)
  if images.dtype != np.uint8:
    raise ValueError(f'images are {images.dtype}; give uint8 pixels of 0 to '
                     f'255, they are normalised here')
  return images
