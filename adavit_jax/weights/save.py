"""Writes parameters to a file, in another library's layout if there is one."""

import pathlib

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from adavit_jax import paths
from adavit_jax.weights import attributes
from adavit_jax.weights import families
from adavit_jax.weights import images
from adavit_jax.weights import mismatch
from adavit_jax.weights import native


def save(path, model, params, *, preprocessing=None):
  """Writes the parameters of a backbone; `load` restores them exactly.

  The layout is the first one that `families` has for the model, e.g. timm's for
  ViT, DeiT and LeViT. A model without one is written in our own layout, whose
  names are paths of parameters, e.g. 'backbone/encoders/qkv/kernel' (see
  `native`).

  Attributes that tensor shapes do not determine, e.g. num_heads, are stored in
  the metadata, and `load` checks them. `num_fixed` is not stored: any
  value may be used to load the file. Added exits ('heads') and policy networks
  are not written.

  Args:
    path: path of the new '.safetensors' file; parent directories are created.
    model: a `Backbone`.
    params: its parameter groups, not folded.
    preprocessing: `Preprocessing` of its images, stored in the metadata.

  Raises:
    ValueError: if the path has another suffix, or the parameters do not fit the
      model.
  """
  path = paths.expanded(path, 'path')
  if not path.endswith('.safetensors'):
    raise ValueError(f'{path} must end in .safetensors')
  path = pathlib.Path(paths.to_write(path, 'path'))
  mismatch.check_params(model, params)
  fmt = families.of(model)[0]
  arrays = {group: jax.tree.map(np.asarray, params[group])
            for group in native.GROUPS if group in params}
  tensors = {t.name: t.from_leaf(_leaf(arrays, t))
             for t in fmt.tensors(model, ())}
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  if size(tensors) != size(arrays):
    raise ValueError(f'the {fmt.title} layout of {type(model).__name__} holds '
                     f'{size(tensors)} of its {size(arrays)} parameters')
  if fmt.further is not None:
    tensors |= fmt.further(model, tensors)
  metadata = attributes.of(model)
  if fmt is not native.FORMAT:
    metadata['format'] = 'pt'  # required by transformers
  if preprocessing is not None:
    metadata[images.METADATA] = images.to_json(preprocessing)
  safetensors_numpy.save_file(tensors, path, metadata)


def _leaf(groups, t):
  """The array of the leaf, or row of a leaf, of `layout.Tensor` t."""
  node = groups[t.group]
  for key in t.leaf:
    if not isinstance(key, int):
      node = node[key]
  row = next((key for key in t.leaf if isinstance(key, int)), ...)
  return node[row] if t.columns is None else node[row][..., slice(*t.columns)]
