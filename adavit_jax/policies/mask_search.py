"""Greedy search for static masks on held-out data."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import mask_losses

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
    images: [B, S, S, C], normalized; required if `plan.rereads_images`.
    forward: start without layers and add the one with the largest loss decrease
      per MAC instead.
    batch_size: most images that run together, over all devices; None for B. On
      the devices are the activations of a few such batches, see `many_masks`.
    mesh: `jax.sharding.Mesh` to shard each batch over; None uses JAX's
      default device.
    progress: called with the number of masks tried so far; see `num_tried` for
      the total.

  Returns:
    `Chain` of L1 + L2 + 1 masks.
  """
  losses = mask_losses.MaskLosses(
      model, params, cost, z1, labels, images=images, batch_size=batch_size,
      mesh=mesh)
  return _greedy_chain(
      losses, np.arange(len(labels)), model, cost, forward, progress)


def _greedy_chain(losses, images, model, cost, forward, progress):
  """`greedy_chain` on some of the images of `MaskLosses`."""
  macs = np.array([*cost.msa, *cost.mlp], np.float64)
  keep, done = np.full(len(macs), not forward, np.float32), 1
  for part in losses.parts(images):
    losses.run(keep[None], part)
  keeps = [keep]
  progress(done)
  while len(keeps) <= len(macs):
    left = np.flatnonzero(keep != forward)
    tried = np.tile(keep, (len(left), 1))
    tried[np.arange(len(left)), left] = forward
    keep = tried[_cheapest(
        losses, images, keep, tried, macs[left],
        lambda share: progress(done + int(share * len(left))))]
    keeps.append(keep)
    done += len(left)
  keeps = np.stack(keeps[::-1] if forward else keeps)
  loss, accuracy = np.stack(
      [losses.of(keep, images).mean(1) for keep in keeps], 1)
  return Chain(Actions.from_keep(jnp.asarray(keeps), plan.num_layers(model)),
               loss, accuracy)


def _cheapest(losses, images, keep, tried, macs, progress):
  """Finds the mask with the least loss increase per MAC.

  Losses are not negative, so that those on some of the images bound a mask's
  loss from below. Since the images with the largest losses come first, most
  masks are known to be worse than a likely one before all images are run. The
  result is that of all masks on all images.

  Args:
    losses: `MaskLosses`.
    images: indices of its images, [n].
    keep: mask that was run on them, [L].
    tried: masks that follow, [m, L].
    macs: MACs between both, [m].
    progress: called with the share of the images that is done.

  Returns:
    The index of one of `tried`.
  """
  before = losses.of(keep, images)[0]
  parts = losses.parts(images[np.argsort(-before, kind='stable')])

  def bounds():
    known = [np.nansum(losses.of(keep, images)[0]) for keep in tried]
    return (np.array(known) - before.sum()) / macs

  losses.run(tried, parts[0])
  likely = np.argmin(bounds())
  for part in parts[1:]:
    losses.run(tried[likely:likely + 1], part)
  for i, part in enumerate(parts, start=1):
    losses.run(tried[bounds() <= bounds()[likely]], part)
    progress(i / len(parts))
  return np.argmin(bounds())


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
  num = len(labels)
  if num < 2:
    raise ValueError(f'the mask search needs 2 images, got {num}; '
                     f'raise --config.data.holdout or num_search')
  # Parts of one size fill the halves as well as the whole.
  losses = mask_losses.MaskLosses(
      model, params, cost, z1, labels, images=images,
      batch_size=min(batch_size or num, -(-num // 2)), mesh=mesh)
  rank = losses.entropy().argsort(kind='stable').argsort()
  each = num_tried(plan.num_layers(model))
  groups = (rank >= 0, rank < num // 2, rank >= num // 2)
  chains = [
      _greedy_chain(losses, np.flatnonzero(group), model, cost, False,
                    lambda done, i=i: progress(i * each + done)).actions
      for i, group in enumerate(groups)]
  return Actions(*map(jnp.concatenate, zip(*chains)))


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
