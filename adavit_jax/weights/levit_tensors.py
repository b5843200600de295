"""LeViT of timm and of the paper's authors (facebookresearch/LeViT).

Both hold the same tensors in the same order under different names.
"""

import math

from absl import logging

from adavit_jax.weights import layout

# Indices of attention biases, which follow from the grid, and counters.
_UNUSED = ('attention_bias_idxs', 'num_batches_tracked')
_STEMS = ('stem.', 'patch_embed.')  # of timm and of the authors


def clean(tensors):
  return {name: x for name, x in tensors.items()
          if not name.endswith(_UNUSED)}


def _layer(name, norm, leaf, shape):
  """A kernel and its BatchNorm, named `name` and `norm`."""
  axes = (1, 0) if len(shape) == 2 else (2, 3, 1, 0)
  there = tuple(shape[axes.index(i)] for i in range(len(axes)))
  return [layout.Tensor(f'{name}.weight', (*leaf, 'kernel'), there, axes),
          *layout.torch_batch_norm(norm, leaf, shape[-1])]


def tensors(model, places, linear, head):
  """`layout.Tensor`s of the groups and heads in a file.

  Args:
    model: `LeViT`.
    places: {(group, row): {layer or other parameter: name in the file}}; the
      row is None if the group is no stack.
    linear: name of the kernel in a layer.
    head: name of the linear layer in a head.
  """
  tensors, groups = [], model.groups()
  for (group, row), names in places.items():
    leaf = (group,) if row is None else (group, row)
    for layer, name in names.items():
      if layer in groups[group].others:
        tensors.append(layout.Tensor(
            name, (*leaf, layer), groups[group].others[layer]))
      else:
        tensors += _layer(f'{name}.{linear}', f'{name}.bn', (*leaf, layer),
                          groups[group].kernels[layer])
  for name in (*model.head_names, *model.aux_names):
    tensors += layout.torch_batch_norm(
        f'{name}.bn', (f'{name}_norm',), model.widths[-1])
    tensors += layout.torch_dense(
        f'{name}.{head}', (name,), model.widths[-1], model.num_classes)
  return tensors


def _timm(model, names=()):
  """One `layout.Tensor` per tensor of a file of timm."""
  del names
  places = {('stem', None): {
      layer: f'stem.conv{i + 1}'
      for i, layer in enumerate(model.groups()['stem'].kernels)}}
  for i, depth in enumerate(model.depths):
    if i:
      down = f'stages.{i}.downsample'
      places[f'subsample_{i}', None] = dict(
          table=f'{down}.attn_downsample.attention_biases',
          kv=f'{down}.attn_downsample.kv', q=f'{down}.attn_downsample.q.ln',
          proj=f'{down}.attn_downsample.proj.ln')
      places[f'mlp_{i}', 0] = dict(
          fc1=f'{down}.mlp.ln1', fc2=f'{down}.mlp.ln2')
    for row in range(depth):
      block = f'stages.{i}.blocks.{row}'
      places[f'encoders_{i}', row] = dict(
          table=f'{block}.attn.attention_biases', qkv=f'{block}.attn.qkv',
          proj=f'{block}.attn.proj.ln', fc1=f'{block}.mlp.ln1',
          fc2=f'{block}.mlp.ln2')
  return tensors(model, places, 'linear', 'linear')


def _authors(model, names=()):
  """One `layout.Tensor` per tensor of a file of the authors."""
  del names
  # The activations between the convolutions have numbers too, and the residual
  # branches and subsamplings of all stages are numbered in one sequence.
  places = {('stem', None): {
      layer: f'patch_embed.{2 * i}'
      for i, layer in enumerate(model.groups()['stem'].kernels)}}
  number = 0
  for i, depth in enumerate(model.depths):
    if i:
      block = f'blocks.{number}'
      places[f'subsample_{i}', None] = dict(
          table=f'{block}.attention_biases', kv=f'{block}.kv',
          q=f'{block}.q.1', proj=f'{block}.proj.1')
      block = f'blocks.{number + 1}.m'
      places[f'mlp_{i}', 0] = dict(fc1=f'{block}.0', fc2=f'{block}.2')
      number += 2
    for row in range(depth):
      msa, mlp = (f'blocks.{number + j}.m' for j in range(2))
      places[f'encoders_{i}', row] = dict(
          table=f'{msa}.attention_biases', qkv=f'{msa}.qkv',
          proj=f'{msa}.proj.1', fc1=f'{mlp}.0', fc2=f'{mlp}.2')
      number += 2
  return tensors(model, places, 'c', 'l')


def adapt(model, path, fmt, wanted, arrays):
  """Copies the class head for a missing second head; see `layout.Format`.

  Raises:
    ValueError: if the file has two heads and the model has one.
  """
  del fmt
  two = any(name.startswith('head_dist.') for name in arrays)
  if two and not model.distillation:
    raise ValueError(f'{path} has two heads and this model has one: set '
                     f'distillation=True')
  if model.distillation and not two:
    if any(t.leaf[0] == 'head_dist' for t in wanted):  # not if it is new
      logging.warning('%s has no distillation head: it becomes a copy of the '
                      'class head.', path)
    names = [t.name for t in wanted if '_dist.' in t.name]
    for name in names:
      of_class = name.replace('_dist.', '.')
      if of_class in arrays:
        arrays[name] = arrays[of_class]


def _sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  del fmt
  first = {t.leaf: arrays[t.name] for t in wanted if t.name in arrays}
  table = first.get(('encoders_0', 0, 'table'))
  conv = first.get(('stem', 'conv_0', 'kernel'))
  if table is None or conv is None:
    return {}
  # The file may have more convolutions than the model.
  num = sum(name.startswith(_STEMS) and x.ndim == 4
            for name, x in arrays.items())
  return dict(patch_size=2**num, channels=conv.shape[1],
              image_size=math.isqrt(table.shape[-1]) * 2**num)


def _images(crop):
  """How the images are prepared, see `layout.Format`."""
  return lambda arrays: dict(layout.IMAGENET, interpolation='bicubic',
                             crop=crop)


_SHARED = dict(clean=clean, heads=('head', 'head_dist'), adapt=adapt,
               sizes=_sizes)

TIMM = layout.Format(
    title='timm LeViT',
    recognizes=lambda names: 'stem.conv1.linear.weight' in names,
    tensors=_timm, block=r'stages\.\d+\.blocks\.(\d+)\.',
    images=_images(0.9), **_SHARED)

AUTHORS = layout.Format(
    title='LeViT',
    recognizes=lambda names: ('patch_embed.0.c.weight' in names
                              and 'poss' not in names),  # of Evo-LeViT
    tensors=_authors, block=r'blocks\.(\d+)\.', images=_images(0.875),
    **_SHARED)
