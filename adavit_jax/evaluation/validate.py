"""What a phase's parameters reach on held-out images, while it runs."""

from adavit_jax.train import phases
from adavit_jax.train import state as state_lib


def validate(trainer, state, phase):
  """Evaluates a state on held-out images.

  Args:
    trainer: `loop.Trainer`, with n > 0 held-out images.
    state: `State`.
    phase: that the state is in.

  Returns:
    (score, larger is better, by which the best checkpoint is chosen; dict of
    metrics).
  """
  run = _exits if phases.PHASES[phase].exits else _last_exit
  return run(trainer, state_lib.final_params(state), phase)


def _last_exit(trainer, params, phase):
  """The score is the accuracy, less what is spent above the budget."""
  system, split = trainer.system, trainer.dataset.holdout
  config, actions = system.config, system.actions(phase)
  if actions is None:
    out = trainer.evaluator.adaptive(
        params, split, threshold=config.nets.threshold)
  else:
    out = trainer.evaluator.given(params, split, actions)
  ratio = float(system.stage_cost(phase).ratio(out.actions).mean())
  metrics = dict(accuracy=out.accuracy, loss=float(out.loss.mean()),
                 macs_ratio=ratio)
  if phases.PHASES[phase].decides == 'all':  # no budget to meet
    return out.accuracy, metrics
  return out.accuracy - max(0., ratio - config.mac_target), metrics


def _exits(trainer, params, phase):
  """The score is the mean over the exits that learn.

  Of a model with early exits of its own it is the last exit's.
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
