"""The layout of DVT's own PyTorch code, for cascades of three transformers.

Names are those of its modules (github.com/blackfeather-wang/
Dynamic-Vision-Transformer: `models/` for T2T-ViT, its copy of timm for DeiT).
Fixed positions and the directions of the performers, which it does not train,
are tensors of the file too.
"""

from adavit_jax.models import dvt_reuse
from adavit_jax.models import dvt_stem
from adavit_jax.models import t2t
from adavit_jax.weights import layout

_PREFIXES = ('less_less_token', 'less_token', 'normal_token')


def _performer(name, leaf, inputs, width, num_features):
  tensors = [layout.Tensor(f'{name}.w', (*leaf, 'w'), (num_features, width))]
  for norm, size in (('norm1', inputs), ('norm2', width)):
    tensors += layout.torch_norm(f'{name}.{norm}', (*leaf, norm), size)
  for there, here, size, out in (
      ('kqv', 'kqv', inputs, 3 * width), ('proj', 'proj', width, width),
      ('mlp.0', 'fc1', width, width), ('mlp.2', 'fc2', width, width)):
    tensors += layout.torch_dense(f'{name}.{there}', (*leaf, here), size, out)
  return tensors


def _stem(model, prefix, index):
  d, leaf = model.width, (f'patch_embed_{index}',)
  if model.stem == 'patch':
    side, _ = dvt_stem.patches(model, index)
    return layout.torch_conv(f'{prefix}.patch_embed.proj', (*leaf, 'proj'),
                             (side, side, model.channels, d))
  name, tensors = f'{prefix}.tokens_to_token', []
  inputs = model.channels * model.windows[index][0] ** 2
  for i in (1, 2):
    tensors += _performer(f'{name}.attention{i}', (*leaf, f'performer_{i}'),
                          inputs, t2t.WIDTH, t2t.FEATURES)
    inputs = 9 * t2t.WIDTH
  return tensors + layout.torch_dense(
      f'{name}.project', (*leaf, 'proj'), inputs, d)


def _block(model, name, leaf, reuses):
  d, hidden = model.width, model.mlp_dim
  dense = lambda there, here, num_in, num_out: layout.torch_dense(
      f'{name}.{there}', (*leaf, here), num_in, num_out)
  norm = lambda there, here, width: layout.torch_norm(
      f'{name}.{there}', (*leaf, here), width)
  wide = d + dvt_reuse.FEATURES * reuses
  # T2T-ViT's queries, keys and values have no bias.
  qkv = dense('attn.qkv', 'qkv', d, 3 * d)[:1 + (model.stem == 'patch')]
  tensors = norm('norm1', 'norm1', d) + qkv + dense('attn.proj', 'proj', d, d)
  tensors += norm('norm2', 'norm2', wide)
  tensors += dense('mlp.fc1', 'fc1', wide, hidden)
  tensors += dense('mlp.fc2', 'fc2', hidden, d)
  if reuses:
    mlp = 'feature_resuse_mlp'  # as its code spells it
    tensors += norm(f'{mlp}.0', 'reuse_norm', d)
    tensors += dense(f'{mlp}.1.fc1', 'reuse_fc1', d, dvt_reuse.HIDDEN)
    tensors += dense(f'{mlp}.1.fc2', 'reuse_fc2', dvt_reuse.HIDDEN,
                     dvt_reuse.FEATURES)
  return tensors


def _relations(prefix, index, channels):
  tensors = []
  for there, here, num_in, num_out in (
      (0, 'fc1', channels, 3 * channels), (2, 'fc2', 3 * channels, channels)):
    name, leaf = f'{prefix}.relation_reuse_conv.{there}', (
        f'relations_{index}', here)
    tensors += [
        layout.Tensor(f'{name}.weight', (*leaf, 'kernel'),
                      (num_out, num_in, 1, 1), (1, 0, 2, 3),
                      shape_here=(num_in, num_out)),
        layout.Tensor(f'{name}.bias', (*leaf, 'bias'), (num_out,))]
  return tensors


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of the file; `names` is not used."""
  del names
  d, tensors = model.width, []
  for k, prefix in enumerate(_PREFIXES):
    tensors += [
        layout.Tensor(f'{prefix}.cls_token', (f'cls_{k}',), (1, 1, d)),
        layout.Tensor(f'{prefix}.pos_embed', (f'pos_embedding_{k}',),
                      (1, model.at(k).num, d))]
    tensors += _stem(model, prefix, k)
    for i in range(model.depth):
      tensors += _block(model, f'{prefix}.blocks.{i}', (f'encoders_{k}', i),
                        bool(k and model.reuse_features))
    if k and model.reuse_relations:
      tensors += _relations(prefix, k, model.depth * model.num_heads)
    tensors += layout.torch_norm(f'{prefix}.norm', (f'norm_{k}',), d)
    tensors += layout.torch_dense(
        f'{prefix}.head', (f'head_{k}',), d, model.num_classes)
  return tensors


FORMAT = layout.Format(
    title='DVT',
    recognizes=lambda names: f'{_PREFIXES[0]}.cls_token' in names,
    clean=dict,
    tensors=_tensors,
    block=r'\w+\.blocks\.(\d+)\.',
    heads=tuple(f'head_{k}' for k in range(len(_PREFIXES))),
    images=lambda arrays: dict(
        layout.IMAGENET, interpolation='bicubic', crop=0.9))
