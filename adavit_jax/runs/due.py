"""What is due after a step of training, and how many steps come before it."""

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


def steps_ahead(config, phase, done):
  """Returns how many steps the next call of a program makes.

  They are `steps_per_call` of the config, or fewer if something is due more
  often. Where something is due before their end, it is one step, so that the
  calls of a phase have two lengths at most.

  Args:
    config: see `train.config.default_config`.
    phase: name of the phase.
    done: steps of the phase so far, fewer than it has.
  """
  steps = config[phase].steps
  periods = config.log_every, config.eval_every, config.checkpoint_every
  most = min(config.steps_per_call, steps, *periods)
  left = min(steps - done, *(every - done % every for every in periods))
  return most if most <= left else 1
