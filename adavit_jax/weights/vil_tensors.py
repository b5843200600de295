"""Vision Longformer of the paper's authors (microsoft/vision-longformer).

Their files hold the weights that global tokens share with the others under two
names, and indices of relative positions. `save` writes all of these, so that
the authors' code finds every tensor. Biases and positions of another size are
interpolated as there.
"""

import re

from absl import logging
import numpy as np

from adavit_jax.models import vil_bias
from adavit_jax.models import windows
from adavit_jax.weights import layout

# Names of the tables of biases, here and there.
_TABLES = dict(table='local_relative_position_bias_table',
               table_global='g2l_relative_position_bias',
               table_within='g2g_relative_position_bias')
_INDEX = 'relative_position_index'
_SHARED = ('query', 'kv', 'proj')  # with global tokens, in local attention
_NO_POSITIONS = '.cls_pos_embed'  # of no global tokens
_FIRST = re.compile(r'(module\.)?layer1\.0\.norm_embed\.weight')
_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.')


def _clean(tensors):
  tensors = {name.removeprefix('module.'): x for name, x in tensors.items()}
  def of_model(name, x):
    shared = name.replace('_global.', '.')
    if shared != name and shared in tensors:
      return not np.array_equal(x, tensors[shared])
    return not name.endswith(_INDEX) and not (
        name.endswith(_NO_POSITIONS) and not x.size)
  return {name: x for name, x in tensors.items() if of_model(name, x)}


def _embed(i, stage, channels):
  """The embedding of stage i; `channels` are those of what it embeds."""
  name, leaf, d = f'layer{i + 1}.0', f'embed_{i}', stage.width
  tensors = [
      *layout.torch_conv(
          f'{name}.proj', (leaf, 'patches', 'proj'),
          (stage.patch_size, stage.patch_size, channels, d)),
      *layout.torch_norm(f'{name}.norm_embed', (leaf, 'norm'), d)]
  rows = []
  if stage.num_global:
    rows.append(('cls_token', 'tokens', stage.num_global, d))
  if not stage.relative:
    rows += [('x_pos_embed', 'positions_rows', stage.side, d // 2),
             ('y_pos_embed', 'positions_columns', stage.side, d // 2)]
    if stage.num_global:
      rows.append(('cls_pos_embed', 'positions_tokens', stage.num_global, d))
  return tensors + [
      layout.Tensor(f'{name}.{there}', (leaf, here), (1, num, width))
      for there, here, num, width in rows]


def _encoder(name, mlp, leaf, stage):
  """An encoder, whose MSA and MLP the file names `name` and `mlp`."""
  d = stage.width
  dense = lambda there, here, num_in, num_out: layout.torch_dense(
      there, (*leaf, here), num_in, num_out)
  if stage.window:
    qkv = [t._replace(columns=columns) for there, columns in (
        ('query', (0, d)), ('kv', (d, 3 * d))) for t in dense(
            f'{name}.attn.{there}', 'qkv', d, columns[1] - columns[0])]
  else:
    qkv = dense(f'{name}.attn.qkv', 'qkv', d, 3 * d)
  return [
      *layout.torch_norm(f'{name}.norm', (*leaf, 'norm1'), d), *qkv,
      *dense(f'{name}.attn.proj', 'proj', d, d),
      *(layout.Tensor(f'{name}.attn.{_TABLES[table]}', (*leaf, table), shape)
        for table, shape in stage.tables.items()),
      *layout.torch_norm(f'{mlp}.norm', (*leaf, 'norm2'), d),
      *dense(f'{mlp}.mlp.fc1', 'fc1', d, 4 * d),
      *dense(f'{mlp}.mlp.fc2', 'fc2', 4 * d, d)]


def _tensors(model, names=()):
  """One `layout.Tensor` per parameter tensor of a file."""
  del names
  tensors, channels = [], model.channels
  for i, (stage, depth) in enumerate(zip(model.stages(), model.depths)):
    tensors += _embed(i, stage, channels)
    channels = stage.width
    for row in range(depth):
      msa, mlp = (f'layer{i + 1}.{2 * row + j}' for j in (1, 2))
      tensors += _encoder(msa, mlp, (f'encoders_{i}', row), stage)
  return [*tensors, *layout.torch_norm('norm', ('norm',), channels),
          *layout.torch_dense('head', ('head',), channels, model.num_classes)]


def _further(model, tensors):
  """What a file holds beside the parameters, see `layout.Format`."""
  more = {}
  for i, (stage, depth) in enumerate(zip(model.stages(), model.depths)):
    if not stage.relative and not stage.num_global:
      more[f'layer{i + 1}.0{_NO_POSITIONS}'] = np.zeros(
          (1, 0, stage.width), np.float32)
    for name in (f'layer{i + 1}.{2 * row + 1}.attn' for row in range(depth)):
      if stage.relative:
        more[f'{name}.{_INDEX}'] = (
            vil_bias.local_index(stage.window) if stage.window else
            windows.relative_positions(stage.side)).astype(np.int64)
      if stage.window and stage.num_global:
        more.update(
            (f'{name}.{layer}_global.{part}', tensors[f'{name}.{layer}.{part}'])
            for layer in _SHARED for part in ('weight', 'bias'))
  return more


def _adapt(model, path, fmt, wanted, arrays):
  """Interpolates positions and biases of another size; see `layout.Format`."""
  del model, path, fmt
  for t in wanted:
    x, here = arrays.get(t.name), t.leaf[-1]
    if x is None or x.shape == t.shape or x.ndim != len(t.shape):
      continue
    if here in ('positions_rows', 'positions_columns'):
      arrays[t.name] = _interpolated(x, t.shape[1], 1)
    elif here == 'table' and x.shape[1] == t.shape[1]:
      old, new = (round(shape[0]**0.5) for shape in (x.shape, t.shape))
      x = _interpolated(x.reshape(old, old, -1), new, 0)
      arrays[t.name] = _interpolated(x, new, 1).reshape(t.shape)
    if arrays[t.name].shape == t.shape:
      logging.info('%s is interpolated to %s.', t.name, t.shape)


def _interpolated(x, num, axis):
  """Linear interpolation of an axis, as torch's with align_corners=False."""
  x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
  place = np.clip((np.arange(num) + 0.5) * len(x) / num - 0.5, 0, len(x) - 1)
  below = np.floor(place).astype(int)
  above = np.minimum(below + 1, len(x) - 1)
  share = (place - below).reshape(-1, *[1] * (x.ndim - 1))
  x = x[below] * (1 - share) + x[above] * share
  return np.moveaxis(x, 0, axis).astype(np.float32)


def _sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  del fmt, wanted
  last = {}  # the last block of each stage
  for match in filter(None, map(_BLOCK.match, arrays)):
    stage, block = int(match[1]), int(match[2])
    last[stage] = max(block, last.get(stage, 0))
  first = lambda name: [arrays.get(f'layer{i}.0.{name}') for i in sorted(last)]
  patches = first('proj.weight')
  if not patches or any(x is None for x in patches):
    return {}
  return dict(
      widths=tuple(len(x) for x in patches),
      depths=tuple(last[i] // 2 for i in sorted(last)),
      patch_sizes=tuple(x.shape[-1] for x in patches),
      num_globals=tuple(0 if x is None else x.shape[1]
                        for x in first('cls_token')),
      relative=tuple(x is None for x in first('x_pos_embed')))


def _images(arrays):
  """How ViL's images are prepared, see `layout.Format`.

  The authors use a larger part of images of 384 pixels than of 224; only their
  absolute positions tell the size.
  """
  rows = arrays.get('layer1.0.x_pos_embed')
  large = rows is not None and 4 * rows.shape[1] > 224
  return dict(layout.IMAGENET, interpolation='bicubic',
              crop=0.922 if large else 0.875)


FORMAT = layout.Format(
    title='Vision Longformer',
    recognizes=lambda names: any(map(_FIRST.fullmatch, names)),
    clean=_clean,
    tensors=_tensors,
    block=r'layer\d+\.(\d+)\.',
    heads=('head',),
    adapt=_adapt,
    sizes=_sizes,
    images=_images,
    further=_further)
