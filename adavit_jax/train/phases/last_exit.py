"""Trains the backbone through its last exit alone; early exits do not learn."""

from adavit_jax.train import training_pass
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the loss of the last exit; see `Phase.loss`."""
  del state
  outputs, stats = exit_losses.outputs(
      system, params, batch, key, done / system.config.last_exit.steps)
  each = exit_losses.each(system, outputs[-1:], batch)
  return each[0], (
      exit_losses.metrics(system, each[0], outputs[-1:], each, batch,
                          first=system.num_exits - 1),
      training_pass.updates(stats))


PHASE = Phase(loss, trains=('backbone',), mean=True, from_scratch=True,
              exits=True, defaults=OPTIMIZER)
