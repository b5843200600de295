"""The one phase of a model that can stop early: all exits learn at once."""

import jax.numpy as jnp

from adavit_jax.train import losses

TRAINS = ('vit',)


def loss(system, params, state, batch, key, progress):
  """Weighted sum of the exits' cross-entropies (RAViT, equation 1).

  Arguments and result are as in `dense.loss`, the system is a `StagedSystem`.
  """
  del state, key, progress
  logits = system.exit_logits(params['vit'], batch.images)  # [E, B, K]
  each = jnp.stack([losses.cross_entropy(y, batch.targets) for y in logits])
  total = (system.weights * each).sum()
  metrics = {'loss': total}
  for i, y in enumerate(logits):
    metrics[f'loss_{i}'] = each[i]
    metrics[f'accuracy_{i}'] = (y.argmax(-1) == batch.labels).mean()
  return total, (metrics, {})
