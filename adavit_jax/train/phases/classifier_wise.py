"""The early exits learn on a frozen backbone, all of them in one pass of it.

The backbone has no gradient, and an exit none from another exit.
"""

from adavit_jax.train.phases import exit_losses

TRAINS = ('heads',)


def loss(system, params, state, batch, key, progress):
  """Sum of the early exits' losses; arguments and result as in `exits.loss`."""
  del key, progress
  outputs = system.outputs(
      system.all_params(state, params), batch.images)[:-1]
  each = exit_losses.each(system, outputs, batch)
  total = sum(each)
  return total, (exit_losses.metrics(system, total, outputs, each, batch), {})
