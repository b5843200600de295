"""timm's and DeiT's names, which are the same."""

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors


def _tensors(model, names=()):
  """`layout.Tensor` of every tensor; `names` does not matter here."""
  del names
  d, hidden, k = model.width, model.mlp_dim, model.num_classes
  found = vit_tensors.tokens(model, 'cls_token', FORMAT.dist, 'pos_embed')
  found += vit_tensors.torch_patches('patch_embed.proj', model)
  for i in range(model.depth):
    name, leaf = f'blocks.{i}', ('encoders', i)
    found += layout.torch_norm(f'{name}.norm1', (*leaf, 'norm1'), d)
    found += layout.torch_dense(f'{name}.attn.qkv', (*leaf, 'qkv'), d, 3 * d)
    found += layout.torch_dense(f'{name}.attn.proj', (*leaf, 'proj'), d, d)
    found += layout.torch_norm(f'{name}.norm2', (*leaf, 'norm2'), d)
    found += layout.torch_dense(f'{name}.mlp.fc1', (*leaf, 'fc1'), d, hidden)
    found += layout.torch_dense(f'{name}.mlp.fc2', (*leaf, 'fc2'), hidden, d)
  found += layout.torch_norm('norm', ('norm',), d)
  for head in ('head', 'head_dist')[:model.num_prefix]:
    found += layout.torch_dense(head, (head,), d, k)
  return found


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
