"""Our parameters as a file that timm and we can load."""

import pathlib

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from adavit_jax import models
from adavit_jax.weights import images
from adavit_jax.weights import mismatch
from adavit_jax.weights import timm


def save(path, model, params, *, preprocessing=None):
  """Writes a model under timm's names; `load` gives it back exactly.

  The number of heads, which no tensor shows, goes into the file's metadata, and
  `load` refuses another one. Which encoders are fixed and which adaptive is not
  in the file.

  Args:
    path: of the new file, '.safetensors'; folders are made.
    model: `ViT` with the patch stem.
    params: its parameters; policy networks are not part of it.
    preprocessing: `Preprocessing` of its images, kept in the file's metadata.

  Raises:
    ValueError: if timm has no such model, or the parameters are not its own.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != '.safetensors':
    raise ValueError(f'{path} must end in .safetensors')
  mismatch.check_model(model)
  _check(model, params)
  tensors = {t.name: t.from_leaf(_leaf(model, params, t.leaf))
             for t in timm.FORMAT.tensors(model)}
  metadata = {'format': 'pt', mismatch.NUM_HEADS: str(model.num_heads)}
  if preprocessing is not None:
    metadata[images.METADATA] = images.to_json(preprocessing)
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors_numpy.save_file(tensors, path, metadata)


def _leaf(model, params, path):
  layer = None
  if path[0] == 'encoders':
    m, i = model.num_fixed, path[1]
    group, layer = ('fixed', i) if i < m else ('adaptive', i - m)
    path = (group, *path[2:])
  for key in path:
    params = params[key]
  return np.asarray(params if layer is None else params[layer], np.float32)


def _check(model, params):
  like = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  describe = lambda tree: {
      jax.tree_util.keystr(path): tuple(x.shape)
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  want, got = describe(like), describe(params)
  wrong = [f'{key}: {got.get(key)} instead of {want.get(key)}'
           for key in sorted({*want, *got}) if got.get(key) != want.get(key)]
  if wrong:
    raise ValueError(f'these are not the parameters of the model: '
                     f'{"; ".join(wrong)}')
