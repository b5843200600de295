"""The layout of timm and of the official DeiT files."""

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of the file; `names` is not used."""
  del names
  d, k = model.width, model.num_classes
  tensors = vit_tensors.tokens(model, 'cls_token', FORMAT.dist, 'pos_embed')
  tensors += vit_tensors.torch_patches('patch_embed.proj', model)
  for i in range(model.depth):
    tensors += layout.torch_encoder(
        f'blocks.{i}', ('encoders', i), d, model.mlp_dim)
  tensors += layout.torch_norm('norm', ('norm',), d)
  for head in ('head', 'head_dist')[:model.num_prefix]:
    tensors += layout.torch_dense(head, (head,), d, k)
  return tensors


FORMAT = layout.Format(
    title='timm / DeiT',
    # Evo-ViT has the same stem and layers of its own for queries and keys.
    recognizes=lambda names: ('patch_embed.proj.weight' in names
                              and 'qks.0.qk.weight' not in names),
    clean=dict,
    tensors=_tensors,
    block=r'blocks\.(\d+)\.',
    heads=vit_tensors.HEADS,
    dist='dist_token',
    adapt=vit_tensors.adapt,
    sizes=vit_tensors.sizes)
