"""The backbone alone: its own head learns, the early exits do not."""

from adavit_jax.train.phases import exit_losses

TRAINS = ('vit',)


def loss(system, params, state, batch, key, progress):
  """Loss of the last exit; arguments and result as in `exits.loss`."""
  del key, progress
  outputs = system.outputs(
      system.all_params(state, params), batch.images)[-1:]
  each = exit_losses.each(system, outputs, batch)
  return each[0], (exit_losses.metrics(
      system, each[0], outputs, each, batch, first=system.num_exits - 1), {})
