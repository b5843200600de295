"""Shared parts of the ViT and DeiT layouts."""

import re

from absl import logging
import numpy as np

from adavit_jax.weights import layout
from adavit_jax.weights import positions

HEADS = ('head', 'head_dist')
_PATCHES = ('patch_embed', 'proj')


def torch_patches(name, model):
  """A torch Conv2d over patches: weight [D, C, P, P] and bias."""
  p = model.patch_size
  return layout.torch_conv(name, _PATCHES, (p, p, model.channels, model.width))


def tokens(model, cls, dist, embedding):
  """Class token, position embedding and, if any, distillation token."""
  d = model.width
  tensors = [
      layout.Tensor(cls, ('cls',), (1, 1, d)),
      layout.Tensor(embedding, ('pos_embedding',), (1, model.num_tokens, d))]
  if model.distillation:
    tensors.append(layout.Tensor(dist, ('dist',), (1, 1, d)))
  return tensors


def adapt(model, path, fmt, wanted, arrays):
  """Resamples the position embedding and adds a missing distillation head.

  Args:
    model: `ViT`.
    path: path of the file, for messages.
    fmt: `layout.Format` of the file.
    wanted: list of `layout.Tensor`.
    arrays: arrays of the file by name, modified in place.

  Raises:
    ValueError: if only one of model and file is distilled.
  """
  _check_tokens(model, path, fmt.dist in arrays)
  resize_positions(model.num_prefix, wanted, arrays)
  dist = [t for t in wanted if t.leaf[0] == 'head_dist']
  if dist and not any(t.name in arrays for t in dist):
    logging.warning('%s has no distillation head: it is set to zero, and the '
                    'class head doubled, whose mean is the class head.', path)
    arrays.update((t.name, np.zeros(t.shape, np.float32)) for t in dist)
    arrays.update((t.name, 2 * arrays[t.name]) for t in wanted
                  if t.leaf[0] == 'head' and t.name in arrays)


def _check_tokens(model, path, dist):
  if dist and not model.distillation:
    raise ValueError(
        f'{path} is of a distilled model (it has a distillation token) and '
        f'this model is not: create a distilled one, e.g. '
        f'deit_small_distilled_patch16_224, or set distillation=True')
  if model.distillation and not dist:
    raise ValueError(
        f'{path} has no distillation token and this model needs one: create a '
        f'model without one, e.g. deit_small_patch16_224, or set '
        f'distillation=False')


def resize_positions(num_prefix, wanted, arrays):
  """Resamples the position embedding of a square grid to the model's.

  Args:
    num_prefix: number of tokens before those of the grid.
    wanted: list of `layout.Tensor`, one of them with the leaf `pos_embedding`.
    arrays: arrays of the file by name, modified in place.
  """
  positions.adapt(next(t for t in wanted if t.leaf == ('pos_embedding',)),
                  arrays, num_prefix)


def sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  blocks = {m[1] for m in (re.match(fmt.block, name) for name in arrays) if m}
  values = {'depth': len(blocks)}
  for t in wanted:
    if t.leaf == (*_PATCHES, 'kernel') and t.name in arrays:
      shape = arrays[t.name].shape
      if len(shape) == 4:
        p, _, c, d = (shape[i] for i in t.order)
        values.update(patch_size=p, channels=c, width=d)
  return values
