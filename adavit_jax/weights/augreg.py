"""Google's .npz files: AugReg (vision_transformer) and big_vision.

They differ in the numbering of submodules, and big_vision has no position
embedding for the class token.
"""

from absl import logging
import numpy as np

from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors

# Prefixes of the parameters: training checkpoints include the optimizer.
_PREFIXES = ('opt/target/', 'params/', '')
_SCANNED = 'Transformer/encoderblock/'
_POSITIONS = 'pos_embedding'  # big_vision
_POSITIONS_AUGREG = 'Transformer/posembed_input/pos_embedding'


def _prefix(names):
  for prefix in _PREFIXES:
    if f'{prefix}embedding/kernel' in names:
      return prefix
  return None


def _clean(tensors):
  prefix = _prefix(tensors)
  unused = [name for name in tensors if not name.startswith(prefix)]
  if any(name.endswith('embedding/kernel') for name in unused):
    logging.warning('The file holds several sets of weights: %s is read, and '
                    'not %s, ...', prefix, unused[0])
  elif unused:
    logging.info('Not used: %d arrays, %s, ...', len(unused), unused[0])
  arrays = {}
  for name, x in tensors.items():
    if not name.startswith(prefix):
      continue
    name = name.removeprefix(prefix)
    if name.startswith(_SCANNED) and x.ndim:
      rest = name.removeprefix(_SCANNED)
      arrays.update((f'Transformer/encoderblock_{i}/{rest}', layer)
                    for i, layer in enumerate(x))
    else:
      arrays[name] = x
  x = arrays.get(_POSITIONS)
  if x is not None and x.ndim == 3 and 'cls' in arrays:
    arrays[_POSITIONS] = np.pad(x, ((0, 0), (1, 0), (0, 0)))
  return arrays


def _dense(name, leaf, num_in, num_out):
  return [layout.Tensor(f'{name}/kernel', (*leaf, 'kernel'), (num_in, num_out)),
          layout.Tensor(f'{name}/bias', (*leaf, 'bias'), (num_out,))]


def _norm(name, leaf, width):
  return [layout.Tensor(f'{name}/{part}', (*leaf, part), (width,))
          for part in ('scale', 'bias')]


def _attention(name, leaf, width, num_heads):
  """Projections with a head axis: q, k and v are [D, H, d], out is [H, d, D].
  """
  heads = (num_heads, width // num_heads)
  tensors = []
  for part in ('query', 'key', 'value'):
    tensors += [
        layout.Tensor(f'{name}/{part}/kernel', (*leaf, 'qkv', 'kernel'),
                      (width, *heads), shape_here=(width, width)),
        layout.Tensor(f'{name}/{part}/bias', (*leaf, 'qkv', 'bias'), heads,
                      shape_here=(width,))]
  return tensors + [
      layout.Tensor(f'{name}/out/kernel', (*leaf, 'proj', 'kernel'),
                    (*heads, width), shape_here=(width, width)),
      layout.Tensor(f'{name}/out/bias', (*leaf, 'proj', 'bias'), (width,))]


def _tensors(model, names):
  """`layout.Tensor`s that a file with tensor `names` should hold."""
  d, p, hidden = model.width, model.patch_size, model.mlp_dim
  big_vision = _POSITIONS in names
  positions = _POSITIONS if big_vision else _POSITIONS_AUGREG
  attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
  tensors = vit_tensors.tokens(model, 'cls', FORMAT.dist, positions)
  patches = ('patch_embed', 'proj')
  tensors += [
      layout.Tensor('embedding/kernel', (*patches, 'kernel'),
                    (p, p, model.channels, d)),
      layout.Tensor('embedding/bias', (*patches, 'bias'), (d,))]
  for i in range(model.depth):
    name, leaf = f'Transformer/encoderblock_{i}', ('encoders', i)
    tensors += _norm(f'{name}/LayerNorm_0', (*leaf, 'norm1'), d)
    tensors += _attention(f'{name}/MultiHeadDotProductAttention_{attention}',
                          leaf, d, model.num_heads)
    tensors += _norm(f'{name}/LayerNorm_{norm2}', (*leaf, 'norm2'), d)
    block = f'{name}/MlpBlock_{mlp}'
    tensors += _dense(f'{block}/Dense_0', (*leaf, 'fc1'), d, hidden)
    tensors += _dense(f'{block}/Dense_1', (*leaf, 'fc2'), hidden, d)
  tensors += _norm('Transformer/encoder_norm', ('norm',), d)
  return tensors + _dense('head', ('head',), d, model.num_classes)


FORMAT = layout.Format(
    title='AugReg / big_vision',
    recognizes=lambda names: _prefix(names) is not None,
    clean=_clean,
    tensors=_tensors,
    block=r'Transformer/encoderblock_(\d+)/',
    heads=vit_tensors.HEADS,
    dist='dist',
    adapt=vit_tensors.adapt,
    sizes=vit_tensors.sizes)
