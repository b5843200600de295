"""Converts the tensors of a file to parameter groups."""

import functools

from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax import models
from adavit_jax.models import params as params_lib
from adavit_jax.models import plan
from adavit_jax.weights import attributes
from adavit_jax.weights import families
from adavit_jax.weights import files
from adavit_jax.weights import labels
from adavit_jax.weights import mismatch
from adavit_jax.weights import stated

# The layer before the head in files pretrained on ImageNet-21k.
_PRE_LOGITS = 'pre_logits'


def init_params(model, key):
  """Reads the parameters from `model.weights`, or initializes them.

  Args:
    model: a `Backbone`.
    key: PRNG key for the initialization; with weights, for added exits and a
      new head.

  Returns:
    dict of float32 parameter groups: 'backbone', 'batch_stats' if there are
    any, and 'heads' if `model.exits` is not empty.

  Raises:
    ValueError: see `load` and `models.init_params`.
  """
  if model.weights:
    return load(model, model.weights, key)
  return models.init_params(model, key)


def load(model, path, key, *, new_head=True, class_names=()):
  """Reads weights for a model; tensor names determine the layout.

  Of files in our own layout, see `save`, only the position embedding of a
  square grid is adapted. Files of other libraries are adapted to the model:

  * The position embedding is resampled to the model's image size, see
    `positions.resize`.
  * A missing head, or one with another number of classes, is initialized.
  * If the file has a class head and no distillation head, both heads are set
    such that their mean, `Logits.total`, equals the class head of the file.

  No layout contains added exits: they are initialized.

  Args:
    model: a `Backbone`; `families.register` adds layouts of other libraries.
    path: a file, 'hf://owner/name' or a `Checkpoint`; see `files.read`.
    key: PRNG key for added exits and a new head.
    new_head: whether the backbone's head may be initialized; if False, a head
      that does not fit is an error.
    class_names: K names of the model's classes. If the file names the same ones
      in another order, its head is brought into this order.

  Returns:
    Parameter groups, see `init_params`.

  Raises:
    ValueError: if `key` is not a single PRNG key, the file cannot be read, or
      it does not fit the model; the message lists all tensors that do not fit,
      with their shapes. Also if a tensor holds NaN or infinite values, or the
      config.json beside the file states another architecture.
  """
  params_lib.check_key(key)
  checkpoint = files.read(path)
  fmt = families.recognize(checkpoint, model)
  arrays = fmt.clean(checkpoint.tensors)
  wanted = fmt.tensors(model, arrays.keys())
  why, order = _other_head(model, fmt, wanted, arrays), None
  if class_names and not why:
    order, why = labels.order(checkpoint, class_names)
  if order:
    why = f'has the classes of the data in another order ({why})'
    if fmt.heads:
      logging.warning('%s %s: the outputs of the head are reordered.',
                      checkpoint.path, why)
      why = ''
  if why and not (new_head and fmt.heads):
    raise ValueError(f'{checkpoint.path} {why}: train a new head first, in a '
                     f'dense phase')
  new = ()
  if why:
    logging.warning('%s %s: a new head of %d classes is initialized.',
                    checkpoint.path, why, model.num_classes)
    new, wanted, arrays = _without_heads(fmt, wanted, arrays)
  patches = _patches(model, wanted, arrays)
  if fmt.adapt is not None:
    fmt.adapt(model, checkpoint.path, fmt, wanted, arrays)
  mismatch.check(model, checkpoint.path, fmt, wanted, arrays)
  mismatch.check_values(model, checkpoint.path, wanted, arrays)
  attributes.check(model, checkpoint)
  stated.check(model, checkpoint, patches)
  params = jax.tree.map(jnp.array, _joined(wanted, arrays))
  if order:
    _reorder(params['backbone'], fmt.heads, order)
  if new or model.exits:
    fresh = _fresh(model, new, key)
    params['backbone'].update(fresh.pop('backbone'))
    params.update(fresh)
  mismatch.check_params(model, params)  # Formats may be defined by users.
  return params


def _patches(model, wanted, arrays):
  """Number of patches in a file's position embedding, 0 for none or several."""
  name = next((t.name for t in wanted if t.leaf == ('pos_embedding',)), None)
  x = arrays.get(name)
  if x is None or x.ndim != 3:
    return 0
  return x.shape[1] - plan.tokens_at(model, 0).prefix


def _other_head(model, fmt, wanted, arrays):
  """Describes the file's head if it does not fit the model, else ''."""
  if not fmt.heads:
    return ''
  head = {t.leaf[1]: arrays[t.name] for t in wanted
          if t.leaf[0] == fmt.heads[0] and t.name in arrays}
  if not head:
    return 'has no head'
  bias = head.get('bias')
  if bias is None or bias.shape == (model.num_classes,):
    return ''
  return f'has {bias.size} classes and this model has {model.num_classes}'


def _without_heads(fmt, wanted, arrays):
  """Returns (names of the heads, tensors and arrays without the heads)."""
  heads = {t.name for t in wanted if t.leaf[0] in fmt.heads}
  rest = {name: x for name, x in arrays.items()
          if name not in heads and not name.startswith(_PRE_LOGITS)}
  return (tuple(sorted({t.leaf[0] for t in wanted if t.name in heads})),
          [t for t in wanted if t.name not in heads], rest)


def _reorder(params, heads, order):
  """Brings the outputs of the linear layers `heads` into another order."""
  for name in heads:
    if 'kernel' in params.get(name, ()):
      params[name] = jax.tree.map(lambda x: x[..., np.array(order)],
                                  params[name])


# Jitted so that XLA drops the computation of all other parameters.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _fresh(model, names, key):
  """Initializes the added exits and the backbone's parameters `names`."""
  groups = models.init_params(model, key)
  fresh = {'backbone': {name: groups['backbone'][name] for name in names}}
  return fresh | ({'heads': groups['heads']} if model.exits else {})


def _joined(wanted, arrays):
  """Joins tensors into leaves and rows into stacks; returns the groups."""
  parts = {}  # {path: {row: arrays}}
  for t in wanted:
    row = next((k for k in t.leaf if isinstance(k, int)), None)
    path = t.group, *(k for k in t.leaf if not isinstance(k, int))
    rows = parts.setdefault(path, {})
    rows.setdefault(row, []).append(t.to_leaf(arrays[t.name]))
  flat = {}
  for path, rows in parts.items():
    whole = {row: np.concatenate(x, axis=-1) if len(x) > 1 else x[0]
             for row, x in rows.items()}
    flat[path] = whole[None] if None in whole else np.stack(
        [whole[row] for row in sorted(whole)])
  return traverse_util.unflatten_dict(flat)
