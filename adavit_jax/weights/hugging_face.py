"""Hugging Face ViT and DeiT, with or without classifier or teacher head."""

from absl import logging

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors

_PATCHES = 'embeddings.patch_embeddings.projection'
_PREFIXES = ('vit.', 'deit.', '')
# Parts of the pretraining objectives that the classifier does not use.
_UNUSED = ('pooler.dense.weight', 'pooler.dense.bias', 'embeddings.mask_token')


def _prefix(names):
  """The prefix of the tensor names, or None if it is another model."""
  for prefix in _PREFIXES:
    if f'{prefix}{_PATCHES}.weight' in names:
      return prefix
  return None


def _clean(tensors):
  prefix = _prefix(tensors)
  tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
  unused = [name for name in _UNUSED if name in tensors]
  if unused:
    logging.info('Not used: %s.', ', '.join(unused))
  return {name: x for name, x in tensors.items() if name not in unused}


def _tensors(model, names):
  """`layout.Tensor`s that a file with tensor `names` should hold."""
  d, hidden, k = model.width, model.mlp_dim, model.num_classes
  tensors = vit_tensors.tokens(model, 'embeddings.cls_token', FORMAT.dist,
                               'embeddings.position_embeddings')
  tensors += vit_tensors.torch_patches(_PATCHES, model)
  for i in range(model.depth):
    name, leaf = f'encoder.layer.{i}', ('encoders', i)
    norm = lambda there, here: layout.torch_norm(
        f'{name}.layernorm_{there}', (*leaf, here), d)
    dense = lambda there, here, num_in, num_out: layout.torch_dense(
        f'{name}.{there}', (*leaf, here), num_in, num_out)
    tensors += norm('before', 'norm1') + norm('after', 'norm2')
    for part in ('query', 'key', 'value'):
      tensors += dense(f'attention.attention.{part}', 'qkv', d, d)
    tensors += dense('attention.output.dense', 'proj', d, d)
    tensors += dense('intermediate.dense', 'fc1', d, hidden)
    tensors += dense('output.dense', 'fc2', hidden, d)
  tensors += layout.torch_norm('layernorm', ('norm',), d)
  teacher = 'cls_classifier.weight' in names
  tensors += layout.torch_dense(
      'cls_classifier' if teacher else 'classifier', ('head',), d, k)
  if model.distillation:
    tensors += layout.torch_dense(
        'distillation_classifier', ('head_dist',), d, k)
  return tensors


FORMAT = layout.Format(
    title='Hugging Face ViT / DeiT',
    recognizes=lambda names: _prefix(names) is not None,
    clean=_clean,
    tensors=_tensors,
    block=r'encoder\.layer\.(\d+)\.',
    heads=vit_tensors.HEADS,
    dist='embeddings.distillation_token',
    adapt=vit_tensors.adapt,
    sizes=vit_tensors.sizes)
