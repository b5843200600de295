"""Losses of masks on images, each computed at most once."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import many_masks
from adavit_jax.runtime import modes

# A set of images is run in so many parts, unless a part would have fewer MACs
# per layer than below: small parts keep the devices waiting for the host.
_PARTS = 16
_LEAST_MACS = 1e9


class MaskLosses:
  """Cross-entropy and correctness of the model under masks on B images."""

  def __init__(self, model, params, cost, z1, labels, *, images=None,
               batch_size=None, mesh=None):
    """Computes nothing yet.

    Args:
      model: a `Backbone`.
      params: groups, folded.
      cost: `Cost` of the model.
      z1: activations of the images where the policy decides.
      labels: [B] int.
      images: [B, S, S, C], normalized; required if `plan.rereads_images`.
      batch_size: most images of a part, over all devices; None for B.
      mesh: `jax.sharding.Mesh`; each part is sharded over all of its axes.
        None uses JAX's default device.
    """
    self._model, self._params, self._mesh = model, params, mesh
    self._arrays = jax.tree.map(np.asarray, (z1, images, labels))
    num = len(labels)
    least = int(_LEAST_MACS / np.mean([*cost.msa, *cost.mlp]))
    size = min(max(-(-num // _PARTS), least), batch_size or num, num)
    self._size = size if mesh is None else size + -size % mesh.size
    self._known = {}

  def parts(self, rows):
    """Splits indices of images [n] into those that are run together: a list."""
    return np.array_split(rows, -(-len(rows) // self._size))

  def run(self, keeps, rows):
    """Computes what is not known of masks [n, L1 + L2] on one part."""
    keeps = [keep for keep in keeps if np.isnan(self._of(keep)[0, rows]).any()]
    if not keeps:
      return
    # The others are copies of the last image.
    padded = np.pad(rows, (0, self._size - len(rows)), 'edge')
    z1, images, labels = jax.tree.map(lambda x: self._put(x[padded]),
                                      self._arrays)
    results = many_masks.run(
        self._model, self._params, z1,
        Actions.from_keep(np.stack(keeps), plan.num_layers(self._model)),
        lambda x: _losses(self._model, self._mesh, self._params, x, labels),
        images=images)
    for keep, *result in zip(keeps, *results):
      self._of(keep)[:, rows] = np.stack(result)[:, :len(rows)]

  def of(self, keep, rows):
    """Returns losses and correctness of one mask, [2, n]; NaN if not known."""
    return self._of(keep)[:, rows]

  def entropy(self):
    """Returns that of the predictions with every layer dropped, [B]."""
    entropy = np.zeros(len(self._arrays[-1]))
    for rows in self.parts(np.arange(len(entropy))):
      padded = np.pad(rows, (0, self._size - len(rows)), 'edge')
      batch = jax.tree.map(lambda x: self._put(x[padded]), self._arrays[:2])
      here = _entropy(self._model, self._mesh, self._params, *batch)
      entropy[rows] = np.asarray(here)[:len(rows)]
    return entropy

  def _of(self, keep):
    name = np.asarray(keep, bool).tobytes()
    if name not in self._known:
      self._known[name] = np.full((2, len(self._arrays[-1])), np.nan)
    return self._known[name]

  def _put(self, x):
    if self._mesh is None:
      return jnp.asarray(x)
    sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
    # Each process supplies the shards of its own devices.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entropy(model, mesh, params, z1, images):
  p = jax.nn.softmax(modes.without_layers(model, params, z1, images).total)
  return _replicated(-(p * jnp.log(p + 1e-9)).sum(-1), mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(model, mesh, params, x, labels):
  logits = modes.classify(model, params, x).total
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = (logits.argmax(-1) == labels).astype(jnp.float32)
  return _replicated((loss, correct), mesh)


def _replicated(tree, mesh):
  """Every process needs the results of all images."""
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(
      tree, NamedSharding(mesh, PartitionSpec()))
