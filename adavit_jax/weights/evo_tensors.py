"""Evo-ViT on DeiT of its authors (YifanXu74/Evo-ViT), and files of DeiT."""

from absl import logging

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors
from adavit_jax.weights import vit_timm

_FIRST = 'qks.0.qk.weight'
# The norm and the head of the mean, and those of the class token in training.
_ANSWERS = (('norm', 'head'), ('norm_cls', 'head_cls'))


def _encoder(i, d, hidden):
  """An encoder; queries and keys are one layer of the file, values another."""
  leaf = ('encoders', i)
  dense = lambda there, here, num_in, num_out: layout.torch_dense(
      there, (*leaf, here), num_in, num_out)
  qkv = [t._replace(columns=columns) for name, *columns in (
      (f'qks.{i}.qk', 0, 2 * d), (f'vs.{i}.v', 2 * d, 3 * d))
         for t in dense(name, 'qkv', d, columns[1] - columns[0])]
  block = f'blocks.{i}'
  return [
      *layout.torch_norm(f'norms.{i}', (*leaf, 'norm1'), d), *qkv,
      *dense(f'projs.{i}', 'proj', d, d),
      *layout.torch_norm(f'{block}.norm2', (*leaf, 'norm2'), d),
      *dense(f'{block}.mlp.fc1', 'fc1', d, hidden),
      *dense(f'{block}.mlp.fc2', 'fc2', hidden, d)]


def _stem(model):
  return [
      layout.Tensor('cls_token', ('cls',), (1, 1, model.width)),
      layout.Tensor('pos_embed', ('pos_embedding',),
                    (1, 1 + model.num_patches, model.width)),
      *vit_tensors.torch_patches('patch_embed.proj', model)]


def _answers(model, names):
  """The norms and heads; `names` are those of both in the file."""
  d, k = model.width, model.num_classes
  return [
      t for there, here in zip(names, _ANSWERS) for t in (
          *layout.torch_norm(there[0], here[:1], d),
          *layout.torch_dense(there[1], here[1:], d, k))]


def _tensors(model, names=()):
  """One `layout.Tensor` per tensor of a file; `names` is not used."""
  del names
  return [*_stem(model),
          *(t for i in range(model.depth)
            for t in _encoder(i, model.width, model.mlp_dim)),
          *_answers(model, _ANSWERS)]


def _tensors_of_deit(model, names=()):
  """The same for a file of DeiT, whose only head fills both."""
  del names
  return [*_stem(model),
          *(t for i in range(model.depth) for t in layout.torch_encoder(
              f'blocks.{i}', ('encoders', i), model.width, model.mlp_dim)),
          *_answers(model, _ANSWERS[:1] * 2)]


def _adapt(model, path, fmt, wanted, arrays):
  """Resamples positions and fills in what inference has not; see `Format`."""
  del fmt
  vit_tensors.resize_positions(1, wanted, arrays)
  copies = {t.name: t.name.replace('_cls', '') for t in wanted
            if t.leaf[0] in _ANSWERS[1] and t.name not in arrays}
  if copies and arrays.keys() >= set(copies.values()):
    logging.warning('%s has no head of the class token, which only training '
                    'uses: it becomes a copy of the other head.', path)
    arrays.update({name: arrays[other] for name, other in copies.items()})


def _images(arrays):
  """How the images are prepared, see `layout.Format`."""
  del arrays
  return dict(layout.IMAGENET, interpolation='bicubic', crop=0.875)


FORMAT = layout.Format(
    title='Evo-ViT',
    recognizes=lambda names: _FIRST in names,
    clean=dict,
    tensors=_tensors,
    block=r'(?:blocks|norms|qks|vs|projs)\.(\d+)\.',
    heads=('head', 'head_cls'),
    adapt=_adapt,
    sizes=vit_tensors.sizes,
    images=_images)

DEIT = vit_timm.FORMAT._replace(
    title='DeiT, for Evo-ViT', tensors=_tensors_of_deit,
    heads=('head', 'head_cls'), adapt=_adapt)
