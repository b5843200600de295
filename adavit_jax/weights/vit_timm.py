"""The layout of timm and of the official DeiT files."""

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of the file; `names` is not used."""
  del names
  d, hidden, k = model.width, model.mlp_dim, model.num_classes
  tensors = vit_tensors.tokens(model, 'cls_token', FORMAT.dist, 'pos_embed')
  tensors += vit_tensors.torch_patches('patch_embed.proj', model)
  for i in range(model.depth):
    name, leaf = f'blocks.{i}', ('encoders', i)
    tensors += layout.torch_norm(f'{name}.norm1', (*leaf, 'norm1'), d)
    tensors += layout.torch_dense(f'{name}.attn.qkv', (*leaf, 'qkv'), d, 3 * d)
    tensors += layout.torch_dense(f'{name}.attn.proj', (*leaf, 'proj'), d, d)
    tensors += layout.torch_norm(f'{name}.norm2', (*leaf, 'norm2'), d)
    tensors += layout.torch_dense(f'{name}.mlp.fc1', (*leaf, 'fc1'), d, hidden)
    tensors += layout.torch_dense(f'{name}.mlp.fc2', (*leaf, 'fc2'), hidden, d)
  tensors += layout.torch_norm('norm', ('norm',), d)
  for head in ('head', 'head_dist')[:model.num_prefix]:
    tensors += layout.torch_dense(head, (head,), d, k)
  return tensors


FORMAT = layout.Format(
    title='timm / DeiT',
    recognises=lambda names: 'patch_embed.proj.weight' in names,
    clean=dict,
    tensors=_tensors,
    block=r'blocks\.(\d+)\.',
    heads=vit_tensors.HEADS,
    dist='dist_token',
    adapt=vit_tensors.adapt,
    sizes=vit_tensors.sizes)
