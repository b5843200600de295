"""The interface of a backbone: an embedding, a plan of encoders, and heads.

A plan is an ordered list of stacks, which are sequences of identical residual
encoders, and of bridges between stacks. The rest of the library (execution
modes, policies, exits, cost, training, export) depends on the plan only, not on
specific models. docs/extending.md shows how to add a backbone.
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

# Activations of a batch: an array [B, N, D], or a dict of arrays [B, ...].
X = jax.Array | dict[str, jax.Array]
KINDS = ('msa', 'mlp', '')


class Tokens(NamedTuple):
  """Describes the tokens that exit heads and policies read at a place.

  Attributes:
    width: D.
    num: N, number of tokens, including the prefix.
    prefix: P, number of leading class and distillation tokens; if 0, the mean
      over all tokens is used instead of the class token.
    grid: (rows, columns) of the other tokens in row-major order, or None if
      they form no grid; convolutional exit heads need one.
    num_heads: attention heads of an encoder at this place; divides `width`.
      Used by the exit head 'vit'.
    mlp_dim: hidden width of the MLP of an encoder at this place. Used by the
      exit head 'vit'.
  """
  width: int
  num: int
  prefix: int = 0
  grid: tuple[int, int] | None = None
  num_heads: int = 1
  mlp_dim: int = 1


class Context(NamedTuple):
  """Inputs that differ between training and inference.

  Attributes:
    train: whether BatchNorm uses the statistics of the batch.
    key: PRNG key of this part of the model, e.g. for random shifts, or None.
      The joint phase assumes that a model without batch statistics computes the
      same function in training and inference.
    stats: batch statistics, of the encoder in a branch and of the whole
      backbone elsewhere; {} if there are none, None if the parameters are
      folded.
    progress: share of the steps that are done, [] float, in a phase that may
      begin with an approximation of the model; else None.
  """
  train: bool = False
  key: jax.Array | None = None
  stats: Any = None
  progress: jax.Array | None = None


EVAL = Context()


class Delta(NamedTuple):
  """The output of a branch.

  Attributes:
    x: added to the activations: an array, or a dict with a subset of their
      keys. If only the first tokens are read afterwards, it may contain only
      those.
    stats: dict of the updated batch statistics of this encoder.
  """
  x: X
  stats: dict[str, Any] = {}


class Branch(NamedTuple):
  """One residual branch of an encoder, x + a * delta(x).

  Attributes:
    kind: 'msa' or 'mlp' for branches that a policy may drop; '' always runs.
    run: (params, x, read, ctx) -> `Delta`, with the params of one encoder.
      `read` is the number of leading tokens that are read afterwards; None for
      all, and always None if `unread` is 0 or the branch is `local`.
    macs: MACs of one image.
    unread: MACs saved if only the prefix is read afterwards; 0 if the branch
      always computes all tokens, as branches of kind '' should.
    local: whether each output token depends on the same input token only, as in
      an MLP. If only leading tokens are read, the input is cut to those.
    replaces: whether the new activations are the delta itself, x = delta(x), of
      any shape, as when tokens merge. Only with kind '' and in a stack of one
      encoder. Leading tokens that are read after a stack must stay as they are.
    unscaled: keys of the delta that are no residual activations, such as
      scores: drop path, which scales what it keeps, leaves them as they are.
  """
  kind: str
  run: Callable[..., Delta]
  macs: int
  unread: int = 0
  local: bool = False
  replaces: bool = False
  unscaled: tuple[str, ...] = ()


class Stack(NamedTuple):
  """A sequence of identical encoders, run by one scan.

  Attributes:
    group: name of the parameters; params[group], and stats[group] if present,
      have a leading axis of encoders. Several stacks may use different rows of
      one group.
    start: first row in the group.
    length: number of encoders.
    branches: branches of one encoder, in order.
    at: `Tokens` after each encoder.
    before: `Tokens` before a stack that changes them; None if equal to `at`.
    each: keys of a dict x that hold one row per encoder of the group, [B, rows,
      ...]. An encoder sees its own row [B, ...] under this key.
    out: {key: shape and dtype for one image} of arrays of one encoder. Each
      starts at zero, and the branches add to it as to x, so that a dropped
      branch adds nothing. After the stack, x[key] is [B, encoders, ...].
  """
  group: str
  start: int
  length: int
  branches: tuple[Branch, ...]
  at: Tokens
  before: Tokens | None = None
  each: tuple[str, ...] = ()
  out: dict[str, jax.ShapeDtypeStruct] = {}


class Bridge(NamedTuple):
  """A computation between two stacks, which always runs.

  Attributes:
    run: (params, x, images, ctx) -> (x, stats), with the params of the whole
      backbone; stats is a dict of the updated groups.
    macs: MACs of one image.
    params: names of the parameter groups that it uses.
    reads_images: whether it uses the images [B, S, S, C].
    read: number of leading tokens of x that it reads; None for all, required
      for a dict whose arrays do not all have tokens as their second axis.
    keys: keys of a dict x that it reads; () for all. Only these are carried
      from the stage before it.
  """
  run: Callable[..., tuple[X, dict[str, Any]]]
  macs: int
  params: tuple[str, ...] = ()
  reads_images: bool = False
  read: int | None = None
  keys: tuple[str, ...] = ()


class OwnExit(NamedTuple):
  """A head of the backbone itself: the final one or an early exit.

  Attributes:
    place: number of encoders before it.
    macs: MACs of one image.
    params: names of the parameter groups that it uses.
    read: number of leading tokens that it reads; None for all, required for a
      dict whose arrays do not all have tokens as their second axis.
  """
  place: int
  macs: int
  params: tuple[str, ...]
  read: int | None = None


class Logits(NamedTuple):
  """Logits of the two heads.

  Attributes:
    cls: [B, K] from the class token.
    dist: [B, K] from the distillation token, or None if there is none.
    aux: `Logits` of heads that only training uses, or None. They learn as the
      other heads do, for half of the loss.
  """
  cls: jax.Array
  dist: jax.Array | None = None
  aux: 'Logits | None' = None

  @property
  def total(self):
    """Logits for inference, the mean of the heads: [B, K] float32.

    DeiT and LeViT average them. US 12,394,190 (figure 3B) sums them, for the
    same classes.
    """
    return self.cls if self.dist is None else (self.cls + self.dist) / 2


class Backbone(nn.Module, kw_only=True):
  """Base class of all models.

  A subclass defines the parameters and implements `embed`, `plan`, `own_exits`,
  `classify` and, with BatchNorm, `fold`. These are pure functions that take
  params and stats as arguments.

  Attributes:
    image_size: S, side of the square input in pixels.
    num_classes: K.
    channels: C, input channels.
    num_fixed: M, number of encoders that always run; the policy decides after
      them.
    exits: (place, head) of each added early exit, with non-decreasing places:
      the number of encoders before the exit and one of `exit_heads.HEADS`.
    weights: file that `adavit_jax.init_params` reads; '' for initialization.
    dtype: compute dtype, applied by the subclass; parameters, softmax and
      logits are float32.
    linen: names of methods other than `setup` and `__call__` that use the
      parameters of the Flax module.
    unsaved: names of attributes that a file of weights does not hold, since
      parameters may be used with other values.
  """
  linen = ()
  unsaved = ()
  image_size: int
  num_classes: int
  channels: int = 3
  num_fixed: int = 1
  exits: tuple[tuple[int, str], ...] = ()
  weights: str = ''
  dtype: Any = jnp.float32

  def __init_subclass__(cls, **kwargs):
    # Flax wraps methods, and the wrapper does not allow the pure functions to
    # create modules. Only methods that use the parameters of this module need
    # it: `setup`, `__call__`, and those applied by name, listed in `linen`.
    for name, value in vars(cls).items():
      if (inspect.isfunction(value) and not hasattr(value, 'compact')
          and name not in ('setup', '__call__', *cls.linen)):
        nn.nowrap(value)
    super().__init_subclass__(**kwargs)

  def __repr__(self):
    """Shows the attributes that differ from their defaults, and the size."""
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
    # Flax prints modules in its errors, also with invalid attributes and half
    # constructed; a repr that raises would hide the error.
    except Exception:
      return ''

  @nn.nowrap
  def init_variables(self, key):
    """Initializes (params, stats), trees of float32; stats may be {}."""
    images = jnp.zeros((1, self.image_size, self.image_size, self.channels))
    variables = self.init(key, images)
    return variables['params'], variables.get('batch_stats', {})

  @nn.nowrap
  def embed(self, params, images, ctx):
    """Normalized images [B, S, S, C] to (x, stats); x is input to the plan."""
    raise NotImplementedError

  @nn.nowrap
  def plan(self):
    """Returns a tuple of `Stack`s and `Bridge`s that starts with a stack."""
    raise NotImplementedError

  @nn.nowrap
  def own_exits(self):
    """Returns the `OwnExit`s by increasing place; the last ends the plan."""
    raise NotImplementedError

  @nn.nowrap
  def classify(self, params, x, index, ctx):
    """Maps x at `own_exits()[index]` to (`Logits`, stats)."""
    raise NotImplementedError

  @property
  def embed_macs(self):
    """MACs of `embed` for one image."""
    raise NotImplementedError

  @nn.nowrap
  def tokens(self, x, at):
    """Tokens [B, N, D] of x at a place with `Tokens` `at`, the prefix first."""
    del at
    return x

  @nn.nowrap
  def fold(self, params, stats):
    """Folds the batch statistics into the parameters for inference."""
    del stats
    return params

  @nn.nowrap
  def paper_flops(self):
    """FLOPs of each stage as the model's paper counts them, or None."""
    return None

  @nn.nowrap
  def check(self):
    """Raises a ValueError for invalid attributes."""
    check_counts(self, 'image_size', 'num_classes', 'channels')
    check_counts(self, 'num_fixed', least=0)


def check_counts(model, *names, least=1):
  """Raises a ValueError for attributes that are not integers >= `least`."""
  for name in names:
    value = getattr(model, name)
    if not isinstance(value, numbers.Integral) or value < least:
      raise ValueError(f'{name}={value!r} must be an integer of at least '
                       f'{least}')


def check_stages(model, *names, least=1):
  """Checks attributes with one integer for each stage.

  Args:
    model: a `Backbone` with `widths`, one of each stage.
    *names: attributes that must be tuples of as many integers.
    least: the least of them.

  Raises:
    ValueError: if one is not.
  """
  stages = model.widths if isinstance(model.widths, tuple) else ()
  for name in names:
    value = getattr(model, name)
    if (not isinstance(value, tuple) or not value or len(value) != len(stages)
        or any(type(n) is not int or n < least for n in value)):
      raise ValueError(f'{name}={value!r} must be a tuple of integers of at '
                       f'least {least}, one for each stage, as widths='
                       f'{model.widths!r}')


