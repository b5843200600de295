"""CrossViT of timm and of the paper's authors (IBM/CrossViT).

The names differ in class tokens and position embeddings alone.
"""

import re

from adavit_jax.models.crossvit import STREAMS
from adavit_jax.models.multi_conv_stem import CONVS
from adavit_jax.weights import layout
from adavit_jax.weights import positions

_AUTHORS = re.compile(r'(pos_embed|cls_token)\.(\d)')


def _clean(tensors):
  return {_AUTHORS.sub(r'\1_\2', name): x for name, x in tensors.items()}


def _stem(model, stream):
  """The patch embedding, class token and positions of a stream, 0 or 1."""
  name, d = STREAMS[stream], model.widths[stream]
  there, here = f'patch_embed.{stream}.proj', f'patch_embed_{name}'
  if model.stem == 'conv':
    tensors, channels = [], model.channels
    for i, (kernel, _, _) in enumerate(CONVS[model.patch_sizes[stream]]):
      out = d >> (2 - i)
      tensors += layout.torch_conv(f'{there}.{2 * i}', (here, f'conv_{i}'),
                                   (kernel, kernel, channels, out))
      channels = out
  else:
    patch = model.patch_sizes[stream]
    tensors = layout.torch_conv(
        there, (here, 'proj'), (patch, patch, model.channels, d))
  return [
      *tensors,
      layout.Tensor(f'cls_token_{stream}', (f'cls_{name}',), (1, 1, d)),
      layout.Tensor(f'pos_embed_{stream}', (f'pos_embedding_{name}',),
                    (1, model.at(stream).num, d))]


def _cross(name, stream, leaf, width, other):
  """The cross-attention of the class token of a stream."""
  attention = f'{name}.fusion.{stream}.attn'
  tensors = [
      *layout.torch_norm(f'{name}.projs.{stream}.0', (leaf, 'norm_in'), width),
      *layout.torch_dense(
          f'{name}.projs.{stream}.2', (leaf, 'dense_in'), width, other),
      *layout.torch_norm(
          f'{name}.fusion.{stream}.norm1', (leaf, 'norm'), other),
      *layout.torch_norm(
          f'{name}.revert_projs.{stream}.0', (leaf, 'norm_out'), other),
      *layout.torch_dense(
          f'{name}.revert_projs.{stream}.2', (leaf, 'dense_out'), other, width)]
  for there, here in dict(wq='q', wk='k', wv='v', proj='proj').items():
    tensors += layout.torch_dense(
        f'{attention}.{there}', (leaf, here), other, other)
  return tensors


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of the file; `names` is not used."""
  del names
  tensors = []
  for stream, (name, d) in enumerate(zip(STREAMS, model.widths)):
    tensors += _stem(model, stream)
    other, length = model.widths[1 - stream], model.lengths[stream]
    for stage in range(model.num_stages):
      block = f'blocks.{stage}'
      for i in range(length):
        tensors += layout.torch_encoder(
            f'{block}.blocks.{stream}.{i}',
            (f'encoders_{name}', stage * length + i), d,
            model.at(stream).mlp_dim)
      tensors += _cross(block, stream, f'cross_{stage}_{name}', d, other)
    tensors += layout.torch_norm(f'norm.{stream}', (f'norm_{name}',), d)
    tensors += layout.torch_dense(
        f'head.{stream}', (f'head_{name}',), d, model.num_classes)
  return tensors


def _adapt(model, path, fmt, wanted, arrays):
  """Resamples the position embeddings, see `layout.Format`."""
  del model, path, fmt
  for tensor in wanted:
    if tensor.name.startswith('pos_embed_'):
      positions.adapt(tensor, arrays)


def _sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  del fmt, wanted
  heads = [arrays.get(f'norm.{stream}.weight') for stream in range(2)]
  blocks = [re.match(r'blocks\.(\d+)\.blocks\.1\.(\d+)\.', name)
            for name in arrays]
  blocks = [tuple(map(int, m.groups())) for m in blocks if m]
  if any(x is None for x in heads) or not blocks:
    return {}
  stages, depth = (1 + max(numbers) for numbers in zip(*blocks))
  conv = 'patch_embed.0.proj.0.weight' in arrays
  return dict(widths=tuple(x.size for x in heads), depth=depth,
              num_stages=stages, stem='conv' if conv else 'patch')


def _images(arrays):
  """How CrossViT's images are prepared, see `layout.Format`."""
  large = arrays['pos_embed_0'].shape[1] > 1 + 20 * 20  # 408 pixels
  return dict(layout.IMAGENET, interpolation='bicubic',
              crop=1. if large else 0.875)


FORMAT = layout.Format(
    title='CrossViT',
    recognizes=lambda names: 'blocks.0.revert_projs.0.0.weight' in names,
    clean=_clean,
    tensors=_tensors,
    block=r'blocks\.\d+\.blocks\.\d\.(\d+)\.',
    heads=('head_small', 'head_large'),
    adapt=_adapt,
    sizes=_sizes,
    images=_images)
