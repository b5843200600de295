"""Greedy search for static masks on held-out data."""

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


def greedy_chain(model, params, cost, z1, labels, *, images=None, weights=None,
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
    weights: weight of each image, [B]; None weights all equally.
    forward: start without layers and add the one with the largest loss decrease
      per MAC instead.
    batch_size: images per batch, over all devices; None for all B.
    mesh: one-axis `jax.sharding.Mesh` to shard each batch over; None uses JAX's
      default device.
    progress: called after each mask with the number of masks tried so far; see
      `num_tried` for the total.

  Returns:
    `Chain` of L1 + L2 + 1 masks.
  """
  place = _placer(len(labels), batch_size, mesh)
  if weights is None:
    weights = np.ones(len(labels), np.float32)
  return _greedy_chain(model, params, cost, place((z1, images, labels)),
                       place(weights, 'constant'), forward, progress)


def _greedy_chain(model, params, cost, batches, weights, forward, progress):
  """`greedy_chain` for batched images and weights."""
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
  """Number of masks that `greedy_chain` tries for (L1, L2) layers."""
  num = sum(num_layers)
  return 1 + num * (num + 1) // 2


def candidates(model, params, cost, z1, labels, *, images=None, batch_size=None,
               mesh=None, progress=lambda done: None):
  """Candidate masks: the chains for all, easy and hard images.

  Easy images are the half with the lowest entropy of the model with every layer
  dropped. Easy and hard images need different layers.

  Args:
    model, params, cost, z1, labels, images, batch_size, mesh: see
      `greedy_chain`.
    progress: see `greedy_chain`; counts over all `NUM_CHAINS` chains.

  Returns:
    `Actions` [3 C, L1], [3 C, L2], C = L1 + L2 + 1; the first C are the chain
    for all images.

  Raises:
    ValueError: if there are fewer than two images.
  """
  if len(labels) < 2:
    raise ValueError(f'the mask search needs 2 images, got {len(labels)}; '
                     f'raise --config.data.holdout or num_search')
  place = _placer(len(labels), batch_size, mesh)
  batches = place((z1, images, labels))
  entropy = np.asarray(_entropy(model, mesh, params, batches[:2]))[:len(labels)]
  rank = entropy.argsort(kind='stable').argsort()
  easy = (rank < len(entropy) // 2).astype(np.float32)
  each = num_tried(plan.num_layers(model))
  chains = [
      _greedy_chain(
          model, params, cost, batches, place(weights, 'constant'), False,
          lambda done, i=i: progress(i * each + done)).actions
      for i, weights in enumerate((np.ones_like(easy), easy, 1 - easy))]
  return Actions(*map(jnp.concatenate, zip(*chains)))


def _placer(num, batch_size, mesh):
  """Returns a function that batches and shards `num` images.

  Args:
    num: B.
    batch_size: see `greedy_chain`; rounded up to a multiple of the number of
      devices.
    mesh: see `greedy_chain`.

  Returns:
    Function from trees of arrays [B, ...] to batches [n, size, ...], padded
    with the last image, with each batch sharded over the mesh; `mode` is that
    of `np.pad`.
  """
  size = min(batch_size or num, num)
  if mesh is not None:
    size += -size % mesh.size

  def place(x, mode):
    x = np.asarray(x)
    rows = -(-num // size) * size
    if rows > num:
      x = np.pad(x, [(0, rows - num), *[(0, 0)] * (x.ndim - 1)], mode)
    x = x.reshape(-1, size, *x.shape[1:])
    if mesh is None:
      return jnp.asarray(x)
    sharding = NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names))
    # Each process supplies the shards of its own devices.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return lambda tree, mode='edge': jax.tree.map(
      lambda x: place(x, mode), tree)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entropy(model, mesh, params, batches):
  """Entropy of the predictions with every layer dropped, [n * size]."""
  def one(batch):
    logits = modes.without_layers(model, params, *batch).total
    p = jax.nn.softmax(logits)
    return -(p * jnp.log(p + 1e-9)).sum(-1)
  entropy = jax.lax.map(one, batches).reshape(-1)
  if mesh is None:
    return entropy
  # Replicated, since every process ranks all images.
  return jax.lax.with_sharding_constraint(
      entropy, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(model, params, batches, actions):
  def sums(batch):
    z1, images, labels, weights = batch
    logits = modes.after_policy(
        model, params, z1, actions, 'cond', images=images).total
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return (weights * loss).sum(), (weights * correct).sum()
  total = batches[-1].sum()
  return [x.sum() / total for x in jax.lax.map(sums, batches)]


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
