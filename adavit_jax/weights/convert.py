"""Other people's weights as our parameter tree."""

from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax import models
from adavit_jax.weights import augreg
from adavit_jax.weights import files
from adavit_jax.weights import hugging_face
from adavit_jax.weights import mismatch
from adavit_jax.weights import positions
from adavit_jax.weights import timm

_FORMATS = (timm.FORMAT, hugging_face.FORMAT, augreg.FORMAT)
_HEADS = ('head', 'head_dist')
# The layer before the head of files pretrained on ImageNet-21k.
_PRE_LOGITS = 'pre_logits'


def recognise(checkpoint):
  """Returns the `Format` of a `Checkpoint`, by its tensors' names.

  Raises:
    ValueError: if it is none that we know.
  """
  for known in _FORMATS:
    if known.recognises(checkpoint.tensors.keys()):
      return known
  some = ', '.join(sorted(checkpoint.tensors)[:4]) or 'nothing'
  raise ValueError(
      f'{checkpoint.path} holds no ViT or DeiT of a known layout ('
      f'{"; ".join(known.title for known in _FORMATS)}); its first tensors: '
      f'{some}')


def init_params(model, key):
  """Float32 parameters of `model`: read from `model.weights`, or initialised.

  Args:
    model: any of `models.create`; only a `ViT` can have weights, with exits
      or without.
    key: for the initialisation; with weights, for a head of other classes.

  Raises:
    ValueError: as `load` and `models.init_params`.
  """
  if getattr(model, 'weights', ''):
    return load(model, model.weights, key)
  params = models.init_params(model, key)
  if isinstance(model, models.MultiExit) and model.vit.weights:
    params['vit'] = load(model.vit, model.vit.weights, key)
  return params


def load(model, path, key, *, new_head=True):
  """Reads weights for a model; the format is recognised by the names.

  The position embedding is resampled to the model's image size
  (`positions.resize`). A head of another number of classes, or none at all,
  is initialised anew; a distillation head that alone is missing becomes zero,
  so that the sum of the heads is what the file's class head says. Where both
  heads are in the file, `Logits.total` is twice what its library returns: the
  mean of the heads there, their sum here.

  Args:
    model: `ViT` with the patch stem.
    path: a file, 'hf://owner/name' or a `Checkpoint`; see `files.read`.
    key: initialises a new head.
    new_head: whether a head may be initialised anew; if not, that is an error.

  Returns:
    The model's parameter tree, float32.

  Raises:
    ValueError: if the file cannot be read or is of another model; names all
      tensors that do not fit, with their shapes.
  """
  mismatch.check_model(model)
  checkpoint = files.read(path)
  fmt = recognise(checkpoint)
  mismatch.check_num_heads(model, checkpoint)
  arrays = fmt.clean(checkpoint.tensors)
  _check_tokens(model, checkpoint.path, fmt.dist in arrays)
  wanted = fmt.tensors(model, arrays.keys())
  new_heads = _drop_heads(model, wanted, arrays, checkpoint.path, new_head)
  wanted = [t for t in wanted if t.leaf[0] not in new_heads]
  _resize_positions(model, wanted, arrays)
  mismatch.check(model, checkpoint.path, fmt, wanted, arrays)
  params = _stack(model, wanted, arrays)
  params.update({head: init(key) for head, init in new_heads.items()})
  return jax.tree.map(jnp.array, params)


def _check_tokens(model, path, dist):
  if dist and not model.distillation:
    raise ValueError(
        f'{path} is a distilled model (it has a distillation token) and this '
        f'model is not: create a distilled one, e.g. '
        f'deit_small_distilled_patch16_224, or set distillation=True')
  if model.distillation and not dist:
    raise ValueError(
        f'{path} has no distillation token and this model needs one: create '
        f'a model without, e.g. deit_small_patch16_224, or set '
        f'distillation=False')


def _drop_heads(model, wanted, arrays, path, new_head):
  """Removes heads of other classes from `arrays`.

  Returns:
    {head: key -> its new parameters}.
  """
  biases = {t.leaf[0]: arrays.get(t.name) for t in wanted
            if t.leaf[0] in _HEADS and t.leaf[1] == 'bias'}
  shape = (model.num_classes,)
  found = {head: x.shape for head, x in biases.items() if x is not None}
  present = {t.leaf[0] for t in wanted if t.name in arrays}
  if 'head' in present and found.get('head', shape) == shape:
    if 'head_dist' not in biases or 'head_dist' in present:
      return {}
    logging.warning('%s has no distillation head: it starts at zero.', path)
    return {'head_dist': lambda key: _zero_head(model)}
  for t in wanted:
    if t.leaf[0] in _HEADS:
      arrays.pop(t.name, None)
  for name in [n for n in arrays if n.startswith(_PRE_LOGITS)]:
    del arrays[name]
  was = 'has no head'
  if 'head' in found:
    was = f'has {biases["head"].size} classes'
  if not new_head:
    raise ValueError(f'{path} {was} and this model has {model.num_classes}: '
                     f'train its new head first, in a dense phase')
  logging.warning('%s %s: a new head of %d classes is initialised.', path, was,
                  model.num_classes)
  return {head: lambda key, head=head: _new_head(model, head, key)
          for head in biases}


def _new_head(model, head, key):
  prefix = jnp.zeros((model.num_prefix, model.width))
  init = lambda key: model.init(key, prefix, method='classify')['params'][head]
  # Compiled, only what the head depends on is computed.
  return jax.jit(init)(key)


def _zero_head(model):
  return {'kernel': np.zeros((model.width, model.num_classes), np.float32),
          'bias': np.zeros(model.num_classes, np.float32)}


def _resize_positions(model, wanted, arrays):
  name = next(t.name for t in wanted if t.leaf == ('pos_embedding',))
  x = arrays.get(name)
  if x is None or x.ndim != 3 or x.shape[2] != model.width:
    return
  was = (x.shape[1] - model.num_prefix) ** 0.5
  side = model.image_size // model.patch_size
  if was >= 1 and was == int(was) and was != side:
    arrays[name] = positions.resize(x, model.num_prefix, side)
    logging.info('Position embedding resampled from %d x %d patches to '
                 '%d x %d.', was, was, side, side)


def _stack(model, wanted, arrays):
  """Joins the tensors to leaves, and the encoders' leaves to two groups."""
  parts = {}
  for t in wanted:
    parts.setdefault(t.leaf, []).append(t.to_leaf(arrays[t.name]))
  leaves = {leaf: x[0] if len(x) == 1 else np.concatenate(x, axis=-1)
            for leaf, x in parts.items()}
  m = model.num_fixed
  groups = {'fixed': range(m), 'adaptive': range(m, model.depth)}
  flat = {leaf: x for leaf, x in leaves.items() if leaf[0] != 'encoders'}
  for rest in {leaf[2:] for leaf in leaves if leaf[0] == 'encoders'}:
    for group, indices in groups.items():
      flat[group, *rest] = np.stack(
          [leaves['encoders', i, *rest] for i in indices])
  return traverse_util.unflatten_dict(flat)
