"""The best static sub-networks, found greedily on held-out data."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import modes

# Of `candidates`: all, easy and hard images.
NUM_CHAINS = 3


class Chain(NamedTuple):
  """Nested static masks, from all layers to none.

  Attributes:
    actions: `Actions` [C, L1], [C, L2], C = L1 + L2 + 1.
    loss: mean cross-entropy on the search data, [C].
    accuracy: share of correct answers on the search data, [C].
  """
  actions: Actions
  loss: np.ndarray
  accuracy: np.ndarray


def greedy_chain(model, params, cost, z1, labels, *, images=None, weights=None,
                 forward=False, batch_size=None, mesh=None,
                 progress=lambda done: None):
  """Drops the layer that costs least loss per MAC saved, one after the other.

  Args:
    model: a `Backbone`.
    params: groups, folded.
    cost: `Cost` of the model.
    z1: activations of held-out images where the policy decides, B of them.
    labels: [B] int.
    images: [B, S, S, C], normalised; needed where `plan.rereads_images`.
    weights: how much each image counts, [B]; None counts all alike.
    forward: add layers to none instead, what saves most loss per MAC first.
    batch_size: images that run at once, on all devices together; None for all
      B.
    mesh: `jax.sharding.Mesh` of one axis, whose devices share the images of a
      batch; None runs them where JAX does by default.
    progress: called with the number of masks tried so far, after each; of
      `num_tried` in all.

  Returns:
    `Chain` of L1 + L2 + 1 masks.
  """
  place = _placer(len(labels), batch_size, mesh)
  if weights is None:
    weights = np.ones(len(labels), np.float32)
  return _greedy_chain(model, params, cost, place((z1, images, labels)),
                       place(weights), forward, progress)


def _greedy_chain(model, params, cost, batches, weights, forward, progress):
  """`greedy_chain` of images and weights that are in batches."""
  done = itertools.count(1)
  num_layers = plan.num_layers(model)
  def evaluate(keep):
    loss, accuracy = map(float, _evaluate(
        model, params, (*batches, weights),
        Actions.from_keep(keep, num_layers)))
    progress(next(done))
    return loss, accuracy
  macs = np.array([*cost.msa, *cost.mlp], np.float64)
  keep = np.full(len(macs), not forward, np.float32)
  rows = [(keep.copy(), *evaluate(keep))]
  while len(rows) <= len(macs):
    tried = []
    for i in np.flatnonzero(keep != forward):
      candidate = keep.copy()
      candidate[i] = forward
      loss, accuracy = evaluate(candidate)
      tried.append(((loss - rows[-1][1]) / macs[i], candidate, loss, accuracy))
    _, keep, loss, accuracy = min(tried, key=lambda t: t[0])
    rows.append((keep.copy(), loss, accuracy))
  keeps, losses, accuracies = map(
      np.stack, zip(*(rows[::-1] if forward else rows)))
  return Chain(Actions.from_keep(jnp.asarray(keeps), num_layers), losses,
               accuracies)


def num_tried(num_layers):
  """How many masks `greedy_chain` tries for (L1, L2) layers."""
  num = sum(num_layers)
  return 1 + num * (num + 1) // 2


def candidates(model, params, cost, z1, labels, *, images=None, batch_size=None,
               mesh=None, progress=lambda done: None):
  """Masks worth choosing from: the chains of all, easy and hard images.

  Easy is the half of the images on which the model without its layers has the
  smallest entropy: what easy images need is not what hard ones need.

  Args:
    model, params, cost, z1, labels, images, batch_size, mesh: as in
      `greedy_chain`.
    progress: likewise, over the `NUM_CHAINS` chains.

  Returns:
    `Actions` [3 C, L1], [3 C, L2], C = L1 + L2 + 1; the first C are the chain
    of all images.

  Raises:
    ValueError: if there are fewer than two images.
  """
  if len(labels) < 2:
    raise ValueError(f'the search of masks needs 2 images, got {len(labels)}; '
                     f'set --config.data.holdout or num_search higher')
  place = _placer(len(labels), batch_size, mesh)
  batches = place((z1, images, labels))
  entropy = np.asarray(_entropy(model, mesh, params, batches[:2]))[:len(labels)]
  rank = entropy.argsort(kind='stable').argsort()
  easy = (rank < len(entropy) // 2).astype(np.float32)
  each = num_tried(plan.num_layers(model))
  chains = [
      _greedy_chain(
          model, params, cost, batches, place(weights), False,
          lambda done, i=i: progress(i * each + done)).actions
      for i, weights in enumerate((np.ones_like(easy), easy, 1 - easy))]
  return Actions(*map(jnp.concatenate, zip(*chains)))


def _placer(num, batch_size, mesh):
  """Lays `num` images out for the devices that run them.

  Args:
    num: B.
    batch_size: as in `greedy_chain`; rounded up to a multiple of the devices.
    mesh: as in `greedy_chain`.

  Returns:
    Function from trees of arrays [B, ...] to batches [n, size, ...], padded
    with zeros, of which every device holds its share of each.
  """
  size = min(batch_size or num, num)
  if mesh is not None:
    size += -size % mesh.size

  def place(x):
    x = np.asarray(x)
    rows = -(-num // size) * size
    if rows > num:
      x = np.pad(x, [(0, rows - num), *[(0, 0)] * (x.ndim - 1)])
    x = x.reshape(-1, size, *x.shape[1:])
    if mesh is None:
      return jnp.asarray(x)
    sharding = NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names))
    # Each process gives what its own devices hold.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return functools.partial(jax.tree.map, place)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entropy(model, mesh, params, batches):
  """Entropy of each image's answer when every layer is dropped, [n * size]."""
  def one(batch):
    logits = modes.without_layers(model, params, *batch).total
    p = jax.nn.softmax(logits)
    return -(p * jnp.log(p + 1e-9)).sum(-1)
  entropy = jax.lax.map(one, batches).reshape(-1)
  if mesh is None:
    return entropy
  # Every process ranks all images.
  return jax.lax.with_sharding_constraint(
      entropy, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(model, params, batches, actions):
  def sums(batch):
    z1, images, labels, weights = batch
    logits = modes.adaptive(
        model, params, z1, actions, 'cond', images=images).total
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return (weights * loss).sum(), (weights * correct).sum()
  total = batches[-1].sum()
  return [x.sum() / total for x in jax.lax.map(sums, batches)]


def nearest(chain, cost, macs_ratio):
  """The mask that spends at least `macs_ratio`, as little as can be.

  Args:
    chain: `Actions` [C, L1], [C, L2], the one that spends most first.
    cost: `Cost`; without policy networks, which a static model does not run.
    macs_ratio: share of the dense model's MACs.

  Returns:
    `Actions` [L1], [L2]; the first where none spends as much.
  """
  ratios = np.asarray(cost.ratio(chain))
  enough = np.flatnonzero(ratios >= macs_ratio - 1e-9)
  i = enough[np.argmin(ratios[enough])] if len(enough) else 0
  return Actions(np.asarray(chain.msa[i]), np.asarray(chain.mlp[i]))
