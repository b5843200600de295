"""What is due after a step of training."""

from typing import NamedTuple


class Due(NamedTuple):
  """What is due after a step, in this order.

  Attributes:
    line: write metrics.
    validation: measure the held-out images.
    checkpoint: save.
    stop: end the run before its last step.
    scored: whether the checkpoint may be the best one.
    end: whether the phase is finished.
  """
  line: bool
  validation: bool
  checkpoint: bool
  stop: bool
  scored: bool
  end: bool


def after(config, phase, done, asked):
  """Returns what is `Due` after `done` steps of a phase.

  Args:
    config: see `train.config.default_config`.
    phase: name of the phase.
    done: steps of the phase so far.
    asked: whether a signal asked the run to stop.
  """
  end, last_phase = done == config[phase].steps, phase == config.phases[-1]
  validation = end or done % config.eval_every == 0
  scored = validation and last_phase
  checkpoint = (
      end or asked or scored or done % config.checkpoint_every == 0)
  return Due(
      # Metrics are checked before a checkpoint is saved, as by a signal during
      # a validation.
      line=checkpoint or validation or done % config.log_every == 0,
      validation=validation, checkpoint=checkpoint,
      stop=asked and not (end and last_phase),
      scored=scored, end=end)
