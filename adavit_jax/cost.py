"""Multiply-accumulates (MACs) in closed form; FLOPs = 2 x MACs.

Matrix products and convolutions are counted, as in published tables; LayerNorm,
softmax and GELU are not. Every encoder of a backbone is counted over all its
tokens, as it runs in training. Inference skips tokens that are never read
(`left_out`): 7 % of the count for ViT-Ti/16. Exit heads never compute those
tokens, so their count excludes them. The formulas are beside the layers:
`models/encoder.macs`, `models/stem.stem_macs`, `models/exit_heads.head_macs`.
"""

import dataclasses

import numpy as np

from adavit_jax import describe
from adavit_jax.models import exit_heads
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Stack
from adavit_jax.runtime import branches


@dataclasses.dataclass(frozen=True)
class Cost:
  """MACs of one image, by part of the model.

  Attributes:
    always: embedding, fixed encoders, bridges, branches that always run and the
      backbone's own exits.
    encoders: the part of `always` in encoders and bridges.
    msa: MACs of each droppable MSA layer, [L1].
    mlp: MACs of each droppable MLP layer, [L2].
    policy: MACs of the policy networks; 0 if there are none.
    stages: MACs of each stage alone, [E]: all its layers, its exit, and the
      policy in the stage where it decides.
    layer_stages: stage index of each layer, `Actions` [L1], [L2].
  """
  always: int
  encoders: int
  msa: tuple[int, ...]
  mlp: tuple[int, ...]
  policy: int
  stages: tuple[int, ...]
  layer_stages: Actions

  def __repr__(self):
    """Shows the MACs of the dense model, and its parts as shares of them."""
    share = lambda macs: f'{macs / (self.dense or 1):.3f}'
    parts = [f'always {share(self.always)}',
             f'{len(self.msa)} MSA layers {share(sum(self.msa))}',
             f'{len(self.mlp)} MLP layers {share(sum(self.mlp))}']
    if self.policy:
      parts.append(f'policy {share(self.policy)}')
    if len(self.stages) > 1:
      parts.append(f'exits at {", ".join(map(share, self.exits))}')
    return f'Cost({describe.macs(self.dense)}: {", ".join(parts)})'

  @property
  def dense(self):
    """MACs with all layers, without policy networks and added exits."""
    return self.always + sum(self.msa) + sum(self.mlp)

  @property
  def exits(self):
    """MACs of an image that leaves at each exit, [E]: all stages up to it."""
    return np.cumsum(self.stages)

  def adaptive(self, actions):
    """MACs under actions, [..., L1], [..., L2] -> [...], without added exits.

    Policy networks are included. NumPy arrays give NumPy results, JAX arrays
    give JAX results.
    """
    return self._kept(actions) + float(self.always + self.policy)

  def _kept(self, actions):
    msa, mlp = ((a.astype(np.float32) * np.array(m, np.float32)).sum(-1)
                for a, m in zip(actions, (self.msa, self.mlp)))
    return msa + mlp

  def ratio(self, actions):
    """`adaptive` divided by `dense`."""
    return self.adaptive(actions) / float(self.dense)

  def encoder_ratio(self, actions):
    """The same ratio over encoders, bridges and policy networks only."""
    rest = float(self.always - self.encoders)
    return (self.adaptive(actions) - rest) / (float(self.dense) - rest)

  def stage(self, index, actions):
    """MACs of a stage under actions [..., L1], [..., L2]; None keeps all."""
    macs = float(self.stages[index])
    if actions is None:
      return macs
    for a, m, stages in zip(
        actions, (self.msa, self.mlp), self.layer_stages):
      here = np.array(m, np.float32) * (np.array(stages) == index)
      macs = macs - ((1 - a) * here).sum(-1)
    return macs

  def mean(self, left):
    """Mean MACs of one image (RAViT, equation 4).

    Args:
      left: [E], number or share of the images that leave at each exit.

    Raises:
      ValueError: if `left` does not have length E or sums to 0.
    """
    return mean(self.stages, left)


def mean(stages, left):
  """`Cost.mean` for stages with the given MACs [E]."""
  left, exits = np.asarray(left, np.float64), np.cumsum(stages)
  if left.shape != exits.shape or not left.sum() > 0:
    raise ValueError(f'left={left} must be the number or share of images that '
                     f'leave at each of the {len(exits)} exits, not all 0')
  return float((left * exits).sum() / left.sum())


def of(model, nets=None):
  """Cost of a model, including its policy networks if given.

  Args:
    model: a `Backbone`.
    nets: `PolicyNets` or None.

  Returns:
    `Cost`.
  """
  num, own_exits = plan.num_encoders(model), model.own_exits()
  macs = plan.layer_macs(model)
  encoders = plan.segment_macs(model, 0, num)
  fixed = encoders - int(macs.msa.sum()) - int(macs.mlp.sum())
  policy = _policy(model, nets) if nets is not None else 0
  stages = []
  for i, (e, span) in enumerate(zip(plan.exits(model), plan.spans(model))):
    head = head_macs(model, e) if e.head else own_exits[e.index].macs
    stages.append(plan.segment_macs(model, *span) + head
                  + (model.embed_macs if i == 0 else 0))
  if policy:
    stages[plan.stage_of(model, model.num_fixed)] += policy
  return Cost(
      always=model.embed_macs + fixed + sum(e.macs for e in own_exits),
      encoders=fixed,
      msa=tuple(macs.msa.tolist()),
      mlp=tuple(macs.mlp.tolist()),
      policy=policy,
      stages=tuple(stages),
      layer_stages=Actions(*(tuple(s.tolist())
                             for s in plan.layer_stages(model))))


def head_macs(model, e):
  """MACs of an added exit `e`, a `plan.Exit`."""
  return exit_heads.head_macs(
      e.head, plan.tokens_at(model, e.place), model.num_classes)


def left_out(model, actions):
  """MACs that `Cost.adaptive` counts but inference skips.

  If only the prefix tokens are read after the last kept MSA layer, that layer
  and the MLP layers after it compute only those tokens. Merging of the others
  is counted here, but skipped in the mode 'static' alone.

  Args:
    model: a `Backbone`.
    actions: `Actions` of NumPy arrays [L1], [L2] or [B, L1], [B, L2].

  Returns:
    [] or [B].
  """
  before = plan.segment(model, 0, model.num_fixed)
  every = Actions(*map(np.ones, plan.num_layers(model, 0, model.num_fixed)))
  behind = plan.segment(model, model.num_fixed, plan.num_encoders(model))
  # The policy reads all tokens where it decides.
  return _left_out(before, every, None) + _left_out(
      behind, actions, plan.read_last(model))


def _left_out(parts, actions, read):
  total = np.zeros(np.shape(actions.msa)[:-1])
  for part, after in zip(parts, branches.after_stacks(parts, actions, read)):
    if isinstance(part, Stack):
      here, read, mixed = after
      shape = (*total.shape, part.length)
      kept = [np.broadcast_to(a, shape) > 0
              for a in branches.per_branch(part, here, np.ones(part.length))]
      later = branches.read_later(part, kept, read, mixed=mixed)
      for branch, keep, all_read in zip(part.branches, kept, later):
        if branch.kind or branch.replaces:
          total = total + (keep & ~all_read).sum(-1) * branch.unread
  return total


def _policy(model, nets):
  at = plan.tokens_at(model, model.num_fixed)
  num_msa, num_mlp = nets.num_layers
  features = nets.num_features(at)
  by_value = nets.decide == 'value'
  inputs, macs = features, 0
  if nets.aux and not by_value:
    macs += features * model.num_classes
    inputs += model.num_classes + 3
  if nets.head:
    # The logits with every layer dropped: all that always runs after z1.
    layers = plan.layer_macs(model)
    behind = plan.segment_macs(
        model, model.num_fixed, plan.num_encoders(model))
    macs += behind - int(layers.msa.sum()) - int(layers.mlp.sum())
    macs += model.own_exits()[-1].macs
    inputs += model.num_classes + 3
  if by_value:
    return macs + inputs * nets.num_candidates
  if nets.hidden:
    macs += inputs * nets.hidden
    inputs += nets.hidden
  convolved = 0
  if nets.conv:
    (rows, columns), convolved = at.grid, nets.conv
    macs += 9 * rows * columns * at.width * nets.conv
    macs += 9 * -(-rows // 2) * -(-columns // 2) * nets.conv ** 2
  return (macs + (inputs + convolved) * num_msa + (inputs + num_msa) * num_mlp)
