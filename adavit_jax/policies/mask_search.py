"""Greedy search for static masks on held-out data."""

import functools
from typing import NamedTuple

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

# Chains of `candidates`: for all, easy and hard images.
NUM_CHAINS = 3


class Chain(NamedTuple):
  """Nested static masks, from all layers to none.

  Attributes:
    actions: `Actions` [C, L1], [C, L2], C = L1 + L2 + 1.
    loss: mean cross-entropy on the search data, [C].
    accuracy: accuracy on the search data, [C].
  """
  actions: Actions
  loss: np.ndarray
  accuracy: np.ndarray


def greedy_chain(model, params, cost, z1, labels, *, images=None,
                 forward=False, batch_size=None, mesh=None,
                 progress=lambda done: None):
  """Repeatedly drops the layer with the least loss increase per MAC saved.

  Args:
    model: a `Backbone`.
    params: parameter groups, folded.
    cost: `Cost` of the model.
    z1: activations of B held-out images where the policy decides.
    labels: [B] int.
    images: [B, S, S, C], normalised; required if `plan.rereads_images`.
    forward: start without layers and add the one with the largest loss decrease
      per MAC instead.
    batch_size: most images of a batch, over all devices; None for B. The
      activations of a few batches are held, see `many_masks`.
    mesh: one-axis `jax.sharding.Mesh` to shard each batch over; None uses JAX's
      default device.
    progress: called with the number of images done so far, where an image
      counts once for each mask; B `num_tried` at the end.

  Returns:
    `Chain` of L1 + L2 + 1 masks.
  """
  scores = _Scores(model, params, (z1, images, labels),
                   [np.arange(len(labels))], batch_size, mesh, progress)
  return _greedy_chain(scores, (0,), cost, forward)


def _greedy_chain(scores, groups, cost, forward):
  """`greedy_chain` on some of the groups of images of `_Scores`."""
  macs = np.array([*cost.msa, *cost.mlp], np.float64)
  keep = np.full(len(macs), not forward, np.float32)
  rows = [(keep, *(x[0] for x in scores(keep[None], groups)))]
  while len(rows) <= len(macs):
    left = np.flatnonzero(keep != forward)
    tried = np.tile(keep, (len(left), 1))
    tried[np.arange(len(left)), left] = forward
    loss, accuracy = scores(tried, groups)
    best = np.argmin((loss - rows[-1][1]) / macs[left])
    keep = tried[best]
    rows.append((keep, loss[best], accuracy[best]))
  keeps, losses, accuracies = map(
      np.stack, zip(*(rows[::-1] if forward else rows)))
  return Chain(Actions.from_keep(jnp.asarray(keeps), scores.num_layers), losses,
               accuracies)


def num_tried(num_layers):
  """Number of masks that `greedy_chain` tries for (L1, L2) layers."""
  num = sum(num_layers)
  return 1 + num * (num + 1) // 2


def candidates(model, params, cost, z1, labels, *, images=None, batch_size=None,
               mesh=None, progress=lambda done: None):
  """Candidate masks: the chains for all, easy and hard images.

  Easy images are the half with the lowest entropy of the model with every layer
  dropped. Easy and hard images need different layers. However many chains try a
  mask, it is run on an image once.

  Args:
    model, params, cost, z1, labels, images, batch_size, mesh: see
      `greedy_chain`.
    progress: see `greedy_chain`; 2 B `num_tried` at the end, since each image
      belongs to two chains.

  Returns:
    `Actions` [3 C, L1], [3 C, L2], C = L1 + L2 + 1; the first C are the chain
    for all images.

  Raises:
    ValueError: if there are fewer than two images.
  """
  num = len(labels)
  if num < 2:
    raise ValueError(f'the mask search needs 2 images, got {num}; '
                     f'raise --config.data.holdout or num_search')
  arrays = z1, images, labels
  entropy = np.concatenate([
      np.asarray(_entropy(model, mesh, params, *batch[:2]))[:valid]
      for valid, batch in _batches(arrays, np.arange(num), batch_size, mesh)])
  # Each group in the order of the images.
  hard = entropy.argsort(kind='stable').argsort() >= num // 2
  scores = _Scores(
      model, params, arrays, [np.flatnonzero(~hard), np.flatnonzero(hard)],
      batch_size, mesh, progress)
  chains = [_greedy_chain(scores, groups, cost, False).actions
            for groups in ((0, 1), (0,), (1,))]
  return Actions(*map(jnp.concatenate, zip(*chains)))


class _Scores:
  """Loss and accuracy of masks on groups of images; each is computed once."""

  def __init__(self, model, params, arrays, groups, batch_size, mesh, progress):
    """Puts the images on the devices.

    Args:
      model: a `Backbone`.
      params: groups, folded.
      arrays: z1, images or None, and labels of B images.
      groups: the images of each group, a list of indices [n].
      batch_size, mesh, progress: see `greedy_chain`.
    """
    self._model, self._params, self._mesh = model, params, mesh
    self._groups = [_batches(arrays, rows, batch_size, mesh) for rows in groups]
    self._progress, self._done = progress, 0
    self._sums = {}
    self.num_layers = plan.num_layers(model)

  def __call__(self, keeps, groups):
    """Returns (loss, accuracy) of masks [n, L1 + L2] on groups, each [n]."""
    for group in groups:
      self._run(group, {keep.tobytes(): keep for keep in keeps})
    images = [sum(valid for valid, _ in self._groups[g]) for g in groups]
    sums = np.array([[self._sums[g, keep.tobytes()] for keep in keeps]
                     for g in groups])
    return tuple(sums.sum(0).T / sum(images))

  def _run(self, group, keeps):
    unseen = {name: keep for name, keep in keeps.items()
              if (group, name) not in self._sums}
    for valid, (z1, images, labels) in self._groups[group]:
      self._count(valid * (len(keeps) - len(unseen)))
      if not unseen:
        continue
      results = many_masks.run(
          self._model, self._params, z1,
          Actions.from_keep(np.stack(list(unseen.values())), self.num_layers),
          lambda x, labels=labels: _losses(
              self._model, self._mesh, self._params, x, labels),
          images=images,
          progress=lambda num, valid=valid: self._count(num * valid))
      for name, result in zip(unseen, np.stack(results, 1)):
        sums = result[:, :valid].sum(1, dtype=np.float64)
        self._sums[group, name] = self._sums.get((group, name), 0) + sums

  def _count(self, images):
    self._done += images
    self._progress(self._done)


def _batches(arrays, rows, batch_size, mesh):
  """Puts images on the devices, in batches of equal size.

  Args:
    arrays: tree of arrays [B, ...].
    rows: indices of the images, [n].
    batch_size, mesh: see `greedy_chain`.

  Returns:
    List of (number of valid images, tree of arrays [size, ...]). The others are
    copies of the last image: as few as the devices need and one for each batch.
  """
  num = -(-len(rows) // (batch_size or len(rows)))
  size = -(-len(rows) // num)
  if mesh is not None:
    size += -size % mesh.size

  def put(x, here):
    x = np.asarray(x)[here]
    if mesh is None:
      return jnp.asarray(x)
    sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    # Each process supplies the shards of its own devices.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  batches = []
  for start in range(0, len(rows), size):
    here = rows[start:start + size]
    valid, here = len(here), np.pad(here, (0, size - len(here)), 'edge')
    batches.append((valid, jax.tree.map(lambda x: put(x, here), arrays)))
  return batches


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entropy(model, mesh, params, z1, images):
  """Entropy of the predictions with every layer dropped, [B]."""
  p = jax.nn.softmax(modes.without_layers(model, params, z1, images).total)
  return _replicated(-(p * jnp.log(p + 1e-9)).sum(-1), mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(model, mesh, params, x, labels):
  """Cross-entropy and whether it is right, of each image: two [B] float32."""
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


def nearest(chain, cost, macs_ratio):
  """The cheapest mask at or above `macs_ratio`.

  Args:
    chain: `Actions` [C, L1], [C, L2], the most expensive mask first.
    cost: `Cost` without policy networks: a static model does not run them.
    macs_ratio: share of the dense model's MACs.

  Returns:
    `Actions` [L1], [L2]; the first mask if all are below `macs_ratio`.
  """
  ratios = np.asarray(cost.ratio(chain))
  enough = np.flatnonzero(ratios >= macs_ratio - 1e-9)
  i = enough[np.argmin(ratios[enough])] if len(enough) else 0
  return Actions(np.asarray(chain.msa[i]), np.asarray(chain.mlp[i]))
