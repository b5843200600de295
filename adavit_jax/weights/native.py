"""The library's own layout, for every model: names are paths of parameters.

'backbone/encoders/fc1/kernel' [L, D, F], for example, is a leaf of the group
'backbone'. A file of a run has further groups, see `runs.run_file`.
"""

from flax import traverse_util
import jax

from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.weights import layout
from adavit_jax.weights import vit_tensors

GROUPS = ('backbone', 'batch_stats')
_OF_RUNS = ('heads', 'policy', 'policy_stats', 'value')


def name(path):
  """The name of a leaf in groups of parameters, given by its key path."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def group(name):
  """The group in a name."""
  return name.partition('/')[0]


def _clean(tensors):
  return {name: x for name, x in tensors.items()
          if group(name) not in _OF_RUNS}


def _tensors(model, names=()):
  """One `layout.Tensor` per leaf; `names` is not used."""
  del names
  like = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  return [
      layout.Tensor('/'.join((group, *leaf)), leaf, x.shape, group=group)
      for group in GROUPS
      for leaf, x in traverse_util.flatten_dict(like.get(group, {})).items()]


def _adapt(model, path, fmt, wanted, arrays):
  """Resamples the position embedding of one square grid; see `Format`."""
  del path, fmt
  at = plan.tokens_at(model, 0)
  if at.grid and at.grid[0] == at.grid[1] and any(
      t.leaf == ('pos_embedding',) for t in wanted):
    vit_tensors.resize_positions(at.prefix, wanted, arrays)


FORMAT = layout.Format(
    title='adavit_jax',
    recognizes=lambda names: any(name.startswith('backbone/')
                                 for name in names),
    clean=_clean,
    tensors=_tensors,
    adapt=_adapt)
