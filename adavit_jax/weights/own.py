"""Our own layout, which every model has: tensors are named by their paths.

'backbone/encoders/fc1/kernel' [L, D, F] is a leaf of the group 'backbone'.
"""

from flax import traverse_util
import jax

from adavit_jax import models
from adavit_jax.weights import layout

GROUPS = ('backbone', 'batch_stats')


def _tensors(model, names=()):
  """`layout.Tensor` of every tensor; `names` does not matter here."""
  del names
  like = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  return [
      layout.Tensor('/'.join((group, *leaf)), leaf, x.shape, group=group)
      for group in GROUPS
      for leaf, x in traverse_util.flatten_dict(like.get(group, {})).items()]


FORMAT = layout.Format(
    title='adavit_jax',
    recognises=lambda names: any(name.startswith('backbone/')
                                 for name in names),
    clean=dict,
    tensors=_tensors)
