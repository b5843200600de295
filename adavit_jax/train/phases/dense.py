"""Phase 1: the ViT, made robust to dropping.

Full model + every nested depth + random masks, so that one set of weights
serves every budget. With `nested` and `mask_weight` at 0 this is the plain
supervised training of a ViT.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions
from adavit_jax.runtime import modes
from adavit_jax.train import losses

TRAINS = ('vit',)


def loss(system, params, state, batch, key, progress):
  """Loss of the dense phase.

  Args:
    system: `System`.
    params: {'vit': ...}, the trained parameters.
    state: `State`; not used, the signature is that of every phase.
    batch: `Batch` of images [B, S, S, C], targets [B, K], labels [B].
    key: PRNG key of this step.
    progress: share of the phase that has passed; not used.

  Returns:
    (loss [], (metrics, updates of state fields)).
  """
  del state, progress
  c, model = system.config.dense, system.model
  vit = params['vit']
  size, num = batch.labels.shape[0], model.num_adaptive
  drop_key, mask_key, rate_key = jax.random.split(key, 3)

  z1 = modes.fixed(model, vit, batch.images)
  gates = drop_path(drop_key, size, num, c.drop_path)
  num_masked = int(c.random_masks * size) if c.mask_weight else 0
  if num_masked:
    # Every image draws its own budget, so that all budgets are met.
    keep = jax.random.uniform(rate_key, (num_masked, 1), minval=0.1)
    masks = jax.random.bernoulli(mask_key, keep, (num_masked, 2 * num))
    masks = Actions.from_keep(masks.astype(jnp.float32))
    gates = Actions(*map(lambda a, b: jnp.concatenate([a, b]), gates, masks))
  rows = jnp.concatenate([z1, z1[:num_masked]])
  _, prefix = system.masked(vit, rows, gates)  # [L, B', P, D]
  prefix = jnp.concatenate([rows[None, :, :model.num_prefix], prefix])
  classify = lambda x: model.apply({'params': vit}, x, method='classify')

  full = classify(prefix[-1, :size])
  ce = losses.head_cross_entropy(full, batch.targets)
  total, metrics = ce, {'loss': ce, 'accuracy': accuracy(full, batch)}
  if c.nested:
    nested = losses.head_cross_entropy(
        classify(prefix[:-1, :size]), batch.targets)
    total += c.nested * nested
    metrics['nested_loss'] = nested
  if num_masked:
    logits = classify(prefix[-1, size:])
    masked = (losses.head_cross_entropy(logits, batch.targets[:num_masked])
              + losses.distillation(logits.total, full.total[:num_masked])) / 2
    total += c.mask_weight * masked
    metrics['masked_loss'] = masked
  return total, (metrics, {})


def drop_path(key, batch_size, num_layers, rate):
  """Gates of stochastic depth, its rate rising linearly with depth to `rate`.

  Returns:
    `Actions` of floats [B, L]: 0, or 1 / survival probability (Huang et al.,
    2016; DeiT's schedule).
  """
  if not rate:
    return Actions(*[jnp.ones((batch_size, num_layers))] * 2)
  survival = 1 - rate * jnp.arange(1, num_layers + 1) / num_layers
  survival = jnp.tile(survival, 2)
  keep = jax.random.bernoulli(key, survival, (batch_size, 2 * num_layers))
  return Actions.from_keep(keep / survival)


def accuracy(logits, batch):
  """Share of images whose largest total logit is the label's."""
  return (logits.total.argmax(-1) == batch.labels).mean()
