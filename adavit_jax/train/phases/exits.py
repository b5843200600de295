"""All exits and the backbone learn at once: end-to-end training."""

from adavit_jax.train.phases import exit_losses

TRAINS = ('vit', 'heads')


def loss(system, params, state, batch, key, progress):
  """Weighted sum of the exits' losses (RAViT, equation 1).

  Arguments and result are as in `dense.loss`, the system is a `StagedSystem`.
  """
  del key, progress
  outputs = system.outputs(system.all_params(state, params), batch.images)
  each = exit_losses.each(system, outputs, batch)
  total = sum(w * x for w, x in zip(system.weights, each))
  return total, (exit_losses.metrics(system, total, outputs, each, batch), {})
