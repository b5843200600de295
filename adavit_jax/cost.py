"""Multiply-accumulates (MACs) in closed form; FLOPs = 2 x MACs.

Counted are matrix products and convolutions, as in the tables of the field;
LayerNorm, softmax and GELU are not. Every encoder of a backbone counts over all
its tokens, as it runs in training. For inference, tokens that nobody reads are
not computed (`unread`, `left_out`): 7 % of what is counted of ViT-Ti/16. Exit
heads never compute them, so they count without (`exit_cost`).
"""

from typing import NamedTuple

import numpy as np

from adavit_jax.models.stem import conv_stem_channels


class Cost(NamedTuple):
  """MACs of one image in the parts of a `ViT`.

  Attributes:
    stem: patch or convolutional embedding.
    msa: one MSA branch.
    mlp: one MLP branch.
    head: the classification heads.
    policy: the policy networks; 0 for a plain model.
    num_fixed: M.
    num_adaptive: L.
  """
  stem: int
  msa: int
  mlp: int
  head: int
  policy: int
  num_fixed: int
  num_adaptive: int

  @property
  def dense(self):
    """MACs of the plain model with all encoders, without policy networks."""
    encoders = (self.num_fixed + self.num_adaptive) * (self.msa + self.mlp)
    return self.stem + encoders + self.head

  def adaptive(self, actions):
    """MACs under actions, [L] to [] or [B, L] to [B], policy networks included.

    Takes NumPy or JAX arrays and computes in their kind.
    """
    kept = actions.msa.sum(-1) * float(self.msa)
    kept = kept + actions.mlp.sum(-1) * float(self.mlp)
    always = self.num_fixed * (self.msa + self.mlp)
    return kept + float(self.stem + always + self.head + self.policy)

  def ratio(self, actions):
    """`adaptive` as a share of `dense`."""
    return self.adaptive(actions) / float(self.dense)

  def encoder_ratio(self, actions):
    """The same share over encoders and policy networks alone."""
    rest = float(self.stem + self.head)
    return (self.adaptive(actions) - rest) / (float(self.dense) - rest)


class StageCost(NamedTuple):
  """MACs of one image in each stage of a model that can stop early.

  Attributes:
    stages: E numbers, each for one stage alone, its exit included.
  """
  stages: tuple[int, ...]

  @property
  def exits(self):
    """MACs of an image that leaves at each exit: all stages so far, [E]."""
    return np.cumsum(self.stages)

  @property
  def dense(self):
    """MACs of an image that goes through all stages."""
    return sum(self.stages)

  def mean(self, left):
    """MACs of the average image (RAViT, equation 4).

    Args:
      left: [E], number or share of the images that leave at each exit.

    Raises:
      ValueError: for another number of exits, or no images.
    """
    left = np.asarray(left, np.float64)
    if left.shape != self.exits.shape or not left.sum() > 0:
      raise ValueError(f'left={left} must give the images that leave at each '
                       f'of the {len(self.stages)} exits, some at one of them')
    return float((left * self.exits).sum() / left.sum())


def vit(model, policy=None):
  """Cost of a `ViT`, with the policy networks that steer it if given.

  Args:
    model: a `ViT`.
    policy: `PolicyNets` or None.

  Returns:
    `Cost`.
  """
  n, d = model.num_tokens, model.width
  grid = model.image_size // model.patch_size
  msa, mlp = encoder(n, d, model.mlp_dim)
  return Cost(
      stem=_stem(model, grid),
      msa=msa,
      mlp=mlp,
      head=model.num_prefix * d * model.num_classes,
      policy=_policy(model, policy) if policy is not None else 0,
      num_fixed=model.num_fixed,
      num_adaptive=model.num_adaptive)


def ravit(model):
  """Cost of a `RAViT`: every product that its program in training computes.

  More than `ravit_paper` by resizing, patch embedding and exits: 1.3 % for the
  1-3 model of CIFAR-10 (5.1 % of its first stage), 1.7 % for the 1-1-8 model of
  ImageNet (18.7 %).

  Returns:
    `StageCost`.
  """
  d, p, c, full = (model.width, model.patch_size, model.channels,
                   model.image_size)
  stages = []
  for branch, encoders in zip(model.branches, ravit_paper(model).stages):
    size = model.branch_size(branch)
    # Rows, then columns, as products with dense weights.
    resize = size * full * c * (full + size) if size < full else 0
    stem = _patches(size // p, p, c, d)
    stages.append(resize + stem + encoders + d * model.num_classes)
  return StageCost(tuple(stages))


def ravit_paper(model):
  """Cost of a `RAViT` as its paper counts it: encoders alone.

  Equation 2 for one encoder of a branch with N tokens, 2 N^2 D + 12 N D^2
  where the MLP is 4 D wide, and equation 3 for the sum over encoders.
  Twice these numbers are the FLOPs of the paper's tables.

  Returns:
    `StageCost`.
  """
  return StageCost(tuple(
      model.layers[i] * sum(
          encoder(model.branch_tokens(i), model.width, model.mlp_dim))
      for i in model.branches))


def encoder(n, d, mlp_dim):
  """MACs of one encoder over N tokens of width D: (MSA, MLP)."""
  return 4 * n * d * d + 2 * n * n * d, 2 * n * d * mlp_dim


def unread(n, read, d, mlp_dim):
  """What `encoder` counts beyond an output of `read` tokens: (MSA, MLP).

  The other tokens have no queries, attention, projection and MLP.
  """
  return (n - read) * (2 * d * d + 2 * n * d), (n - read) * 2 * d * mlp_dim


def left_out(model, actions):
  """MACs that `Cost.adaptive` counts and inference need not spend.

  The heads read the prefix tokens. So the last MSA layer that is kept, and the
  MLP layers from there on, have an output of these tokens alone.

  Args:
    model: a `ViT`.
    actions: `Actions` of NumPy arrays, [L] or [B, L].

  Returns:
    [] or [B].
  """
  msa, mlp = unread(model.num_tokens, model.num_prefix, model.width,
                    model.mlp_dim)
  num_mlp = (actions.mlp * ~actions.read_later).sum(-1)
  return actions.msa.any(-1) * msa + num_mlp * mlp


def _patches(grid, p, channels, d):
  return grid * grid * p * p * channels * d


def _stem(model, grid):
  d, p = model.width, model.patch_size
  if model.stem == 'patch':
    return _patches(grid, p, model.channels, d)
  macs, side, channels = 0, model.image_size, model.channels
  for out in conv_stem_channels(d, p):
    side //= 2
    macs += side * side * 9 * channels * out
    channels = out
  return macs + grid * grid * channels * d


def _policy(model, policy):
  features = policy.num_features(model)
  inputs = features
  macs = 0
  if policy.aux:
    macs += features * model.num_classes
    inputs += model.num_classes + 3
  if policy.head:
    macs += model.num_prefix * model.width * model.num_classes
    inputs += model.num_classes + 3
  if policy.hidden:
    macs += inputs * policy.hidden
    inputs += policy.hidden
  num = model.num_adaptive
  return macs + inputs * num + (inputs + num) * num


