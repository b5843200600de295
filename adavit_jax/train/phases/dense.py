"""Phase 1: trains the whole model and makes it robust to dropped layers.

The loss covers the full model, every nested depth and random masks, so that one
set of weights serves every budget. With `nested` and `mask_weight` at 0 this is
plain supervised training of a backbone. Labels and, if there is one, another
model teach all of these (`losses.supervised`). `nested` has an effect only if
the last exit can be applied after every encoder (`can_nest`). Batch statistics
cover all rows, including those with random masks.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train import training_pass
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


class Rows(NamedTuple):
  """Layout of a batch in which some images have a second row.

  Rows are in groups of equal size: first the images of a group, then the second
  rows of its first images. Groups are as small as possible, so that a device
  that holds whole groups computes the second rows of its own images.

  Attributes:
    size: B, the number of images.
    num: how many of them have a second row.
  """
  size: int
  num: int

  @property
  def _groups(self):
    return math.gcd(self.size, self.num)

  def _grouped(self, x):
    return x.reshape(self._groups, x.shape[0] // self._groups, *x.shape[1:])

  def chosen(self, x):
    """Selects the images with a second row: [B, ...] to [num, ...]."""
    first = self._grouped(x)[:, :self.num // self._groups]
    return first.reshape(self.num, *x.shape[1:])

  def join(self, x, y):
    """Joins the images' x [B, ...] and the second rows' y [num, ...].

    Returns:
      [B + num, ...].
    """
    both = jnp.concatenate([self._grouped(x), self._grouped(y)], axis=1)
    return both.reshape(self.size + self.num, *x.shape[1:])

  def split(self, x):
    """Inverts `join`: returns (x, y)."""
    at = self.size // self._groups
    return (self._grouped(x)[:, :at].reshape(self.size, *x.shape[1:]),
            self._grouped(x)[:, at:].reshape(self.num, *x.shape[1:]))


def loss(system, params, state, batch, key, done):
  """Returns the loss of the dense phase; see `Phase.loss`."""
  del state
  c, model = system.config.dense, system.model
  size, num_layers = batch.labels.shape[0], plan.num_layers(model)
  drop_key, mask_key, rate_key, key = jax.random.split(key, 4)

  start = training_pass.begin(
      system, params, batch.images, key, done / c.steps)
  gates = drop_path(drop_key, size, num_layers, c.drop_path)
  num_masked = int(c.random_masks * size) if c.mask_weight else 0
  rows = Rows(size, num_masked)
  more = lambda x: rows.join(x, rows.chosen(x))
  if num_masked:
    # Each image draws its own rate, so that training covers all budgets.
    rate = jax.random.uniform(rate_key, (num_masked, 1), minval=0.1)
    masks = (jax.random.bernoulli(k, rate, (num_masked, num)).astype(float)
             for k, num in zip(jax.random.split(mask_key), num_layers))
    gates = Actions(*map(rows.join, gates, masks))
  nested = c.nested and can_nest(model)
  x, early = jax.tree.map(more, (start.x, start.early))
  out = training_pass.finish(
      system, params, start._replace(x=x, early=early),
      more(batch.images) if plan.rereads_images(model) else None, gates,
      nested=nested)
  first = lambda x: rows.split(x)[0]
  full = jax.tree.map(first, out.logits)
  value = losses.supervised(full, batch.targets, batch.taught, c)
  total, metrics = value, {'loss': value, 'accuracy': accuracy(full, batch)}
  if nested:
    value = losses.supervised(
        jax.tree.map(jax.vmap(first), out.nested), batch.targets, batch.taught,
        c)
    total += c.nested * value
    metrics['nested_loss'] = value
  if num_masked:
    logits = jax.tree.map(lambda x: rows.split(x)[1], out.logits)
    targets, taught, whole = jax.tree.map(
        rows.chosen, (batch.targets, batch.taught, full.total))
    masked = (losses.supervised(logits, targets, taught, c)
              + losses.distillation(logits.total, whole)) / 2
    total += c.mask_weight * masked
    metrics['masked_loss'] = masked
  total += exit_losses.early(system, list(map(first, out.early)), batch)
  return total, (metrics, training_pass.updates(out.stats))


def can_nest(model):
  """Returns whether the last exit can be applied after every encoder.

  This holds if all layers after the policy may be dropped.
  """
  parts = plan.segment(model, model.num_fixed, plan.num_encoders(model))
  return (len(parts) == 1 and len(model.own_exits()) == 1
          and plan.read_last(model) is not None
          and all(branch.kind for branch in parts[0].branches))


def drop_path(key, batch_size, num_layers, rate):
  """Draws gates of stochastic depth; the rate rises linearly with depth.

  Args:
    key: PRNG key.
    batch_size: B.
    num_layers: (L1, L2).
    rate: drop rate of the last layer, in [0, 1).

  Returns:
    `Actions` of floats [B, L1], [B, L2]: 0, or 1 / survival probability (Huang
    et al., 2016; DeiT's schedule).
  """
  if not rate:
    return Actions(*(jnp.ones((batch_size, num)) for num in num_layers))
  survival = fixed.survival(num_layers, 1 - rate)
  keep = fixed.draw(key, batch_size, survival)
  return Actions(*(a / s for a, s in zip(keep, survival)))


def accuracy(logits, batch):
  """Returns the accuracy of the total logits."""
  return (logits.total.argmax(-1) == batch.labels).mean()


def check(system):
  """Raises a ValueError if parts do not have equally many random masks."""
  c = system.config.dense
  num = int(c.random_masks * c.batch_size)
  part = int(c.random_masks * (c.batch_size // c.accumulate))
  if c.mask_weight and num != part * c.accumulate:
    raise ValueError(
        f'dense.accumulate={c.accumulate} must divide the {num} images of a '
        f'batch with random masks (dense.random_masks={c.random_masks}); set '
        f'it lower, or dense.mask_weight=0')


PHASE = Phase(
    loss, trains=('backbone',), mean=True, taught=True, from_scratch=True,
    decides='all', check=check,
    defaults=dict(OPTIMIZER, drop_path=0.1, nested=0.5, random_masks=0.5,
                  mask_weight=0.5, distill=0.5, temperature=1.0,
                  hard_distill=True),
    ranges=dict(drop_path=ranges.BELOW_1, nested=ranges.WEIGHT,
                random_masks=ranges.SHARE, mask_weight=ranges.WEIGHT,
                distill=ranges.SHARE, temperature=ranges.POSITIVE))
