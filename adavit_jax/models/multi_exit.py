"""Multi-Exit ViT: exit heads after any encoders of a ViT."""

import flax.linen as nn
import jax.numpy as jnp

from adavit_jax.models import exit_heads
from adavit_jax.models.vit import ViT


class MultiExit(nn.Module):
  """A ViT with early exits (Multi-Exit Vision Transformer, BMVC 2021).

  Stage k runs the encoders up to exit k, and the head of that exit on all of
  their tokens; the last stage ends in the ViT's own head. Several heads after
  one encoder are exits of their own, for comparison: the later ones run no
  encoder of their own.

  Parameters are {'vit': as of the plain ViT, 'heads': {'exit_0': ...}}.

  Attributes:
    vit: the backbone.
    exits: (layer, head) of each early exit: how many encoders have run, 1 to
      N - 1 and not falling, and one of `exit_heads.HEADS`.
  """
  vit: ViT
  exits: tuple[tuple[int, str], ...]

  @property
  def image_size(self):
    return self.vit.image_size

  @property
  def channels(self):
    return self.vit.channels

  @property
  def num_classes(self):
    """K."""
    return self.vit.num_classes

  @property
  def num_stages(self):
    """E, the early exits and the last one."""
    return len(self.exits) + 1

  def span(self, index):
    """Encoders of a stage: numbers of the first and of one past the last."""
    ends = (0, *(layer for layer, _ in self.exits), self.vit.depth)
    return ends[index], ends[index + 1]

  def setup(self):
    self.heads = _Heads(self.vit.clone(parent=None), self.exits)

  def exit(self, x, index):
    """Tokens [B, N, D] to the logits [B, K] float32 of an exit."""
    if index < len(self.exits):
      return self.heads(x, index)
    return self.vit.classify(x[:, :self.vit.num_prefix]).total

  def stage(self, images, x, index, **options):
    """Runs one stage; see `stages.stages`.

    Args:
      images: [B, S, S, C]; only the first stage looks at them.
      x: tokens of the stage before, [B, N, D]; None before the first.
      index: 0 to E - 1.
      **options: unroll, remat and inference, see `run_stack`. For inference,
        the last encoder computes the prefix tokens alone.

    Returns:
      (tokens [B, N, D], logits [B, K] float32); of the last stage, for
      inference, prefix tokens [B, P, D].

    Raises:
      ValueError: if the images are not of the model's size.
    """
    x = self.vit.embed(images) if x is None else x
    last = index == self.num_stages - 1
    if last and options.get('inference'):
      options = dict(options, read=self.vit.num_prefix)
    x = self.vit.encode(x, *self.span(index), **options)
    return x, self.exit(x, index)

  def __call__(self, images, **options):
    """All stages, with the options of `stage`.

    [B, S, S, C] -> logits at every exit [E, B, K].
    """
    x, logits = None, []
    for i in range(self.num_stages):
      x, y = self.stage(images, x, i, **options)
      logits.append(y)
    return jnp.stack(logits)


class _Heads(nn.Module):
  """The heads, in a group of parameters of their own."""
  vit: ViT
  exits: tuple[tuple[int, str], ...]

  @nn.compact
  def __call__(self, x, index):
    _, name = self.exits[index]
    head = exit_heads.create(name, self.vit, self.vit.num_classes,
                             name=f'exit_{index}')
    return head(x)


def check(m):
  """Raises a ValueError if the exits do not fit the ViT of a `MultiExit`."""
  if not isinstance(m.exits, tuple):
    raise ValueError(f'exits={m.exits!r} must be a tuple of (layer, head)')
  for entry in m.exits:
    if (not isinstance(entry, tuple) or len(entry) != 2
        or type(entry[0]) is not int
        or entry[1] not in list(exit_heads.HEADS)):
      raise ValueError(
          f'exits={m.exits}: {entry!r} must be (layer, head), head one of '
          f'{sorted(exit_heads.HEADS)}')
  layers = [layer for layer, _ in m.exits]
  if (not layers or min(layers) < 1 or max(layers) >= m.vit.depth
      or layers != sorted(layers)):
    raise ValueError(
        f'exits={m.exits}: layers must be 1 to {m.vit.depth - 1}, since '
        f'{m.vit.depth} encoders end in the last exit, and must not fall')
