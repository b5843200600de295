"""Multiply-accumulates (MACs) in closed form; FLOPs = 2 x MACs.

Counted are matrix products and convolutions, as in the tables of the field;
LayerNorm, softmax and GELU are not.
"""

from typing import NamedTuple

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
  return Cost(
      stem=_stem(model, grid),
      msa=4 * n * d * d + 2 * n * n * d,
      mlp=2 * n * d * model.mlp_dim,
      head=model.num_prefix * d * model.num_classes,
      policy=_policy(model, policy) if policy is not None else 0,
      num_fixed=model.num_fixed,
      num_adaptive=model.num_adaptive)


def _stem(model, grid):
  d, p = model.width, model.patch_size
  if model.stem == 'patch':
    return grid * grid * p * p * model.channels * d
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
  if policy.hidden:
    macs += inputs * policy.hidden
    inputs += policy.hidden
  num = model.num_adaptive
  return macs + inputs * num + (inputs + num) * num


