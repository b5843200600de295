"""Shuffle Transformer of its authors (mulinmeng/Shuffle-Transformer)."""

import re

from adavit_jax.models import shuffle_params
from adavit_jax.weights import layout

# Indices of relative positions, which follow from the window, and counters.
_UNUSED = ('relative_position_index', 'num_batches_tracked')
_TABLE = re.compile(
    r'stage(\d+)\.layers\.(\d+)\.0\.attn\.relative_position_bias_table')
_conv = layout.torch_conv


def _clean(tensors):
  return {name: x for name, x in tensors.items()
          if not name.endswith(_UNUSED)}


def _encoder(name, leaf, model, stage):
  """The two blocks of an encoder."""
  width, heads = model.widths[stage], model.heads[stage]
  hidden = model.at(stage).mlp_dim
  local = (model.kernel_size, model.kernel_size, 1, width)
  tensors = []
  for i, block in enumerate(shuffle_params.BLOCKS):
    there = f'{name}.{i}'
    msa, conv, mlp = ((*leaf, f'{block}_{layer}')
                      for layer in ('msa', 'local', 'mlp'))
    for number, layer in enumerate((msa, conv, mlp)):
      tensors += layout.torch_batch_norm(
          f'{there}.norm{number + 1}', (*layer, 'norm'), width)
    table = (2 * model.window_size - 1)**2
    tensors += [
        *_conv(f'{there}.attn.to_qkv', (*msa, 'qkv'), (width, 3 * width),
               bias=False),
        *_conv(f'{there}.attn.proj', (*msa, 'proj'), (width, width)),
        layout.Tensor(f'{there}.attn.relative_position_bias_table',
                      (*msa, 'table'), (table, heads), (1, 0)),
        *_conv(f'{there}.local', (*conv, 'conv'), local),
        *_conv(f'{there}.mlp.fc1', (*mlp, 'fc1'), (width, hidden)),
        *_conv(f'{there}.mlp.fc2', (*mlp, 'fc2'), (hidden, width))]
  return tensors


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of the file; `names` is not used."""
  del names
  channels = (model.channels, model.stem_width, model.widths[0])
  tensors = []
  for i, pair in enumerate(zip(channels, channels[1:])):
    name = f'to_token.conv{i + 1}'
    tensors += _conv(f'{name}.0', ('stem', f'conv_{i}'), (3, 3, *pair))
    tensors += layout.torch_batch_norm(
        f'{name}.1', ('stem', f'norm_{i}'), pair[1])
  tensors += _conv('to_token.conv3', ('stem', 'proj'), (model.widths[0],) * 2)
  for i, depth in enumerate(model.depths):
    stage = f'stage{i + 1}'
    if i:
      merge, pair = (f'merge_{i}',), model.widths[i - 1:i + 1]
      tensors += layout.torch_batch_norm(
          f'{stage}.patch_partition.norm', (*merge, 'norm'), pair[0])
      tensors += _conv(f'{stage}.patch_partition.reduction', (*merge, 'conv'),
                       (2, 2, *pair), bias=False)
    for row in range(depth // 2):
      tensors += _encoder(
          f'{stage}.layers.{row}', (f'encoders_{i}', row), model, i)
  return tensors + layout.torch_dense(
      'head', ('head',), model.widths[-1], model.num_classes)


def _sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  del fmt, wanted
  depths, heads, widths = {}, {}, {}
  for name, x in arrays.items():
    m = _TABLE.fullmatch(name)
    if m:
      stage, row = map(int, m.groups())
      depths[stage] = max(depths.get(stage, 0), 2 * (row + 1))
      heads[stage] = x.shape[-1]
      bias = arrays.get(f'stage{stage}.layers.{row}.0.attn.proj.bias')
      widths[stage] = 0 if bias is None else bias.size
  return {name: tuple(values[stage] for stage in sorted(values))
          for name, values in dict(
              widths=widths, depths=depths, heads=heads).items()}


def _images(arrays):
  """How the images are prepared, see `layout.Format`."""
  del arrays
  return dict(layout.IMAGENET, interpolation='bicubic', crop=0.875)


FORMAT = layout.Format(
    title='Shuffle Transformer',
    recognizes=lambda names: 'to_token.conv1.0.weight' in names,
    clean=_clean,
    tensors=_tensors,
    block=r'stage\d+\.layers\.(\d+)\.',
    heads=('head',),
    sizes=_sizes,
    images=_images)
