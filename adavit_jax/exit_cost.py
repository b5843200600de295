"""Multiply-accumulates (MACs) of a Multi-Exit ViT in closed form.

Counted as in `cost`: matrix products and convolutions, these with their zero
padding.
"""

from adavit_jax import cost
from adavit_jax.models import exit_heads


def head_macs(name, vit, num_outputs):
  """MACs of one image in an exit head.

  Of 'vit' and 'mlp_mixer' only what their class token needs is computed, in
  training too, and counted.

  Args:
    name: one of `exit_heads.HEADS`.
    vit: the `ViT` whose tokens it reads.
    num_outputs: K.

  Returns:
    int.

  Raises:
    ValueError: for another name.
  """
  exit_heads.check_name(name)
  d, n, p = vit.width, vit.num_tokens, vit.num_prefix
  side = vit.image_size // vit.patch_size
  patches = side * side
  last = d * num_outputs
  channels = 2 * 4 * d * d  # of one token, D -> 4 D -> D

  if name == 'mlp':
    return channels + last
  if name == 'vit':
    unread = sum(cost.unread(n, p, d, vit.mlp_dim))
    return sum(cost.encoder(n, d, vit.mlp_dim)) - unread + last
  if name == 'mlp_mixer':
    return d * (n + p) * 4 * d + p * channels + last
  if name == 'resmlp':
    return d * patches * patches + patches * channels + last

  pooled = ((side + 1) // 2) ** 2
  filters = exit_heads.FILTERS
  project = patches * 2 * d * d if name == 'cnn_project' else 0
  return (project + patches * 9 * d * filters
          + pooled * filters * num_outputs)


def multi_exit(model, policy=None):
  """Cost of a `MultiExit`: each stage with its head.

  Args:
    model: a `MultiExit`.
    policy: `PolicyNets` that drop its layers, or None; counted in the first
      stage, which asks them. Dropped layers are not subtracted.

  Returns:
    `StageCost`.
  """
  vit = cost.vit(model.vit, policy)
  stages = []
  for index in range(model.num_stages):
    start, stop = model.span(index)
    head = vit.head
    if index < len(model.exits):
      head = head_macs(model.exits[index][1], model.vit, model.num_classes)
    first = vit.stem + vit.policy if index == 0 else 0
    stages.append(first + (stop - start) * (vit.msa + vit.mlp) + head)
  return cost.StageCost(tuple(stages))
