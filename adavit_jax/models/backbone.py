"""The contract of a backbone: an embedding, a plan of encoders, heads.

A plan is an ordered list of stacks of equal residual encoders and of bridges
between them. Everything else in the library (execution modes, policies, exits,
cost, training, export) reads the plan and knows no model by name.
docs/extending.md shows how to add one.
"""

from collections.abc import Callable
import dataclasses
import inspect
import numbers
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax import describe

# The activations of a batch: an array [B, N, D], or a dict of arrays [B, ...].
X = jax.Array | dict[str, jax.Array]
KINDS = ('msa', 'mlp', '')


class Tokens(NamedTuple):
  """What exit heads and policies can read at a place of the plan.

  Attributes:
    width: D.
    num: N, tokens, those of the prefix included.
    prefix: P, class and distillation tokens before the others; where there are
      none, the mean over all tokens stands in for the class token.
    grid: (rows, columns) of the other tokens, or None if their order is no
      raster: heads that convolve are refused there.
    num_heads: attention heads of an encoder at this place; divides `width`.
    mlp_dim: hidden width of its MLP; like num_heads, it sizes the exit head
      'vit'.
  """
  width: int
  num: int
  prefix: int = 0
  grid: tuple[int, int] | None = None
  num_heads: int = 1
  mlp_dim: int = 1


class Context(NamedTuple):
  """What training needs and inference does not.

  Attributes:
    train: whether BatchNorm uses the statistics of the batch.
    key: PRNG key of this part of the model, for random shifts and the like, or
      None. The joint phase takes a model without batch statistics for one that
      is the same in training and at inference.
    stats: batch statistics: of the one encoder in a branch, of the whole
      backbone elsewhere, {} without any; None where the parameters are folded.
  """
  train: bool = False
  key: jax.Array | None = None
  stats: Any = None


EVAL = Context()


class Delta(NamedTuple):
  """What a branch adds.

  Attributes:
    x: added to the activations: an array, or a dict with some of their keys.
      Where only the first tokens are read, it may be of these alone.
    stats: new batch statistics of this encoder, a dict; {} changes none.
  """
  x: X
  stats: dict[str, Any] = {}


class Branch(NamedTuple):
  """One residual branch of an encoder, x + a * delta(x).

  Attributes:
    kind: 'msa' or 'mlp' may be dropped by a policy; '' always runs.
    run: (params, x, read, ctx) -> `Delta`; params of one encoder. `read`, for a
      branch with `unread`, says how many of the first tokens are read
      afterwards, and None all.
    macs: MACs of one image.
    unread: how many MACs fewer it takes where only the prefix is read
      afterwards; 0 if it always computes all tokens, as a branch of kind ''
      should.
    local: whether a token of the result depends on that token alone, as in an
      MLP. Such a branch is given the first tokens where these are read.
  """
  kind: str
  run: Callable[..., Delta]
  macs: int
  unread: int = 0
  local: bool = False


class Stack(NamedTuple):
  """Equal encoders in a row, run by one scan.

  Attributes:
    group: params[group] has a leading axis of encoders, and stats[group] if
      there is one; several stacks may read different rows of one group.
    start: first row of the group.
    length: number of encoders.
    branches: of one encoder, in order.
    at: the tokens behind every encoder.
  """
  group: str
  start: int
  length: int
  branches: tuple[Branch, ...]
  at: Tokens


class Bridge(NamedTuple):
  """What happens between two stacks; it always runs.

  Attributes:
    run: (params, x, images, ctx) -> (x, stats); params of the whole backbone,
      stats a dict of the changed groups.
    macs: MACs of one image.
    params: names of the groups of parameters that it reads.
    reads_images: whether it looks at the images [B, S, S, C] again.
    read: how many of the first tokens it reads of x; None for all, as it must
      be where x is a dict.
  """
  run: Callable[..., tuple[X, dict[str, Any]]]
  macs: int
  params: tuple[str, ...] = ()
  reads_images: bool = False
  read: int | None = None


class OwnExit(NamedTuple):
  """A head that belongs to the backbone, the last one or an early one.

  Attributes:
    place: encoders before it.
    macs: MACs of one image.
    params: names of the groups of parameters that it reads.
    read: how many of the first tokens it reads; None for all, as it must be
      where x is a dict.
  """
  place: int
  macs: int
  params: tuple[str, ...]
  read: int | None = None


class Logits(NamedTuple):
  """Class scores of the two heads.

  Attributes:
    cls: [B, K] from the class token.
    dist: [B, K] from the distillation token, or None without one.
  """
  cls: jax.Array
  dist: jax.Array | None = None

  @property
  def total(self):
    """Scores used at inference: the sum of the heads (US 12,394,190, fig. 3B).

    Returns:
      [B, K] float32.
    """
    return self.cls if self.dist is None else self.cls + self.dist



class Backbone(nn.Module, kw_only=True):
  """A model that every mechanism of the library works on.

  A subclass owns the parameters and gives `embed`, `plan`, `own_exits` and
  `classify`; with BatchNorm also `fold`. These are pure functions: params and
  stats are passed to them.

  Attributes:
    image_size: side S of the square input in pixels.
    num_classes: K.
    channels: input channels C.
    num_fixed: M: encoders of the plan that always run; the policy decides
      behind them.
    exits: (place, head) of each added early exit: how many encoders have run,
      not falling, and one of `exit_heads.HEADS`.
    weights: file that `adavit_jax.init_params` reads; '' initialises.
    dtype: compute dtype, which the subclass applies; parameters, softmax and
      logits are float32.
    linen: names of methods that use the parameters of the Flax module, beside
      `setup` and `__call__`.
  """
  linen = ()
  image_size: int
  num_classes: int
  channels: int = 3
  num_fixed: int = 1
  exits: tuple[tuple[int, str], ...] = ()
  weights: str = ''
  dtype: Any = jnp.float32

  def __init_subclass__(cls, **kwargs):
    # Pure functions make modules of their own, which Flax's wrapper refuses.
    # It is needed where the module's own parameters are used: in `setup`, in
    # `__call__`, and in what is applied by name, listed in `linen`.
    for name, value in vars(cls).items():
      if (inspect.isfunction(value) and not hasattr(value, 'compact')
          and name not in ('setup', '__call__', *cls.linen)):
        nn.nowrap(value)
    super().__init_subclass__(**kwargs)

  def __repr__(self):
    """Attributes but those at their defaults, and what they amount to."""
    values = []
    for field in dataclasses.fields(self):
      value = getattr(self, field.name, None)
      if field.name not in ('parent', 'name') and value != field.default:
        value = str(value) if field.name == 'dtype' else repr(value)
        values.append(f'{field.name}={value}')
    return f'{type(self).__name__}({", ".join(values)}){self._size()}'

  @nn.nowrap
  def _size(self):
    try:
      plan = self.plan()
      stacks = [part for part in plan if isinstance(part, Stack)]
      macs = self.embed_macs + sum(
          part.length * sum(b.macs for b in part.branches)
          if isinstance(part, Stack) else part.macs for part in plan)
      macs += sum(e.macs for e in self.own_exits())
      length = sum(stack.length for stack in stacks)
      nums = sorted({stack.at.num for stack in stacks})
      tokens = ' to '.join(map(str, nums[:1] + nums[1:][-1:]))
      return (f': {length} encoder{"s" * (length != 1)}, {tokens} tokens, '
              f'{describe.macs(macs)}')
    except Exception:  # attributes that do not fit, and what is half made
      return ''

  @nn.nowrap
  def init_variables(self, key):
    """Initialises (params, stats), both trees of float32; stats may be {}."""
    images = jnp.zeros((1, self.image_size, self.image_size, self.channels))
    variables = self.init(key, images)
    return variables['params'], variables.get('batch_stats', {})

  @nn.nowrap
  def embed(self, params, images, ctx):
    """Normalised images [B, S, S, C] to (x, stats): what the plan begins with.
    """
    raise NotImplementedError

  @nn.nowrap
  def plan(self):
    """Returns a tuple of `Stack` and `Bridge`; it begins with a stack."""
    raise NotImplementedError

  @nn.nowrap
  def own_exits(self):
    """Returns the `OwnExit`s by rising place; the last ends the plan."""
    raise NotImplementedError

  @nn.nowrap
  def classify(self, params, x, index, ctx):
    """An own exit: x behind the encoders before it to (`Logits`, stats)."""
    raise NotImplementedError

  @property
  def embed_macs(self):
    """MACs of `embed` for one image."""
    raise NotImplementedError

  @nn.nowrap
  def tokens(self, x, at):
    """Tokens [B, N, D] of x at a place with `Tokens` `at`, prefix first."""
    del at
    return x

  @nn.nowrap
  def fold(self, params, stats):
    """Parameters for inference, whose branches need no batch statistics."""
    del stats
    return params

  @nn.nowrap
  def paper_macs(self):
    """MACs of each stage as the model's paper counts them, or None."""
    return None

  @nn.nowrap
  def check(self):
    """Raises a ValueError for attributes that do not fit together."""
    check_counts(self, 'image_size', 'num_classes', 'channels')
    check_counts(self, 'num_fixed', least=0)


def check_counts(model, *names, least=1):
  """Raises a ValueError for attributes that are not whole numbers >= `least`.
  """
  for name in names:
    value = getattr(model, name)
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(f'{name}={value!r} must be a whole number of at least '
                       f'{least}')


