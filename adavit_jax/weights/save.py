"""Our parameters as a file, one that timm can load where it has the model."""

import pathlib

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from adavit_jax.weights import attributes
from adavit_jax.weights import formats
from adavit_jax.weights import images
from adavit_jax.weights import mismatch
from adavit_jax.weights import own


def save(path, model, params, *, preprocessing=None):
  """Writes a backbone; `load` gives it back exactly.

  Under timm's names where timm has such a model, a ViT or DeiT with the patch
  stem. Any other model is written in our own layout, whose tensors are named
  by the paths of their groups, as in 'backbone/encoders_0/qkv/kernel' (`own`).

  Whole numbers that no tensor shows, as the number of heads, go into the file's
  metadata, and `load` refuses others. `num_fixed` is not in the file: it may be
  loaded with any. Added exits ('heads') and policy networks are not written
  either.

  Args:
    path: of the new file, '.safetensors'; folders are made.
    model: a `Backbone`.
    params: its groups of parameters, not folded.
    preprocessing: `Preprocessing` of its images, kept in the file's metadata.

  Raises:
    ValueError: if the path ends otherwise, or the parameters are not the
      model's.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != '.safetensors':
    raise ValueError(f'{path} must end in .safetensors')
  mismatch.check_params(model, params)
  fmt = formats.of(model)[0]
  arrays = {group: jax.tree.map(np.asarray, params[group])
            for group in own.GROUPS if group in params}
  tensors = {t.name: t.from_leaf(_leaf(arrays, t))
             for t in fmt.tensors(model, ())}
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  if size(tensors) != size(arrays):
    raise ValueError(f'the {fmt.title} layout of {type(model).__name__} holds '
                     f'{size(tensors)} of its {size(arrays)} parameters')
  metadata = attributes.of(model)
  if fmt is not own.FORMAT:
    metadata['format'] = 'pt'  # transformers asks for it
  if preprocessing is not None:
    metadata[images.METADATA] = images.to_json(preprocessing)
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors_numpy.save_file(tensors, path, metadata)


def _leaf(groups, t):
  """The array that `layout.Tensor` t is of."""
  found = groups[t.group]
  for key in t.leaf:
    if not isinstance(key, int):
      found = found[key]
  row = next((key for key in t.leaf if isinstance(key, int)), ...)
  return found[row]
