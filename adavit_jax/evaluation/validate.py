"""Validation on held-out images during a phase."""

from adavit_jax.train import phases
from adavit_jax.train import state as state_lib


def validate(trainer, state, phase):
  """Evaluates a state on held-out images.

  Args:
    trainer: `loop.Trainer`, with n > 0 held-out images.
    state: `State`.
    phase: the phase of the state.

  Returns:
    (score, dict of metrics); higher scores are better, and the best checkpoint
    is chosen by the score.
  """
  run = _exits if phases.PHASES[phase].exits else _last_exit
  return run(trainer, state_lib.final_params(state), phase)


def _last_exit(trainer, params, phase):
  """Validates the last exit; the score is accuracy minus MACs over budget."""
  system, split = trainer.system, trainer.dataset.holdout
  config, after = system.config, system.after(phase)
  actions = after.actions
  if actions is None:
    out = trainer.evaluator.adaptive(
        params, split, knob=system.knob(params))
  else:
    out = trainer.evaluator.with_actions(params, split, actions)
  ratio = float(after.cost.ratio(out.actions).mean())
  metrics = dict(accuracy=out.accuracy, loss=float(out.loss.mean()),
                 macs_ratio=ratio)
  if phases.PHASES[phase].decides == 'all':  # the budget does not apply
    return out.accuracy, metrics
  return out.accuracy - max(0., ratio - config.mac_target), metrics


def _exits(trainer, params, phase):
  """Validates all exits; the score is the mean over the exits that learn.

  For a model whose backbone has early exits, it is the last exit's score.
  """
  system, evaluator = trainer.system, trainer.exit_evaluator
  out = evaluator(phase, params, trainer.dataset.holdout)
  metrics = {'loss': out.loss.mean(1), **evaluator.metrics(out.score)}
  scores = out.score.mean(1)
  if phase == 'classifier_wise':
    scores = scores[[i for i, e in enumerate(system.exits) if e.head]]
  elif phase == 'last_exit' or len(system.model.own_exits()) > 1:
    scores = scores[-1:]
  return float(scores.mean()), metrics
