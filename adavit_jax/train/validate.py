"""What a phase's parameters reach on held-out images, while it runs."""

import jax
import numpy as np

from adavit_jax.train import staged
from adavit_jax.train import system as system_lib
from adavit_jax.train.phases import static


def validate(system, evaluator, state, split, phase):
  """Evaluates a state on held-out images.

  Args:
    system: `System` or `StagedSystem`.
    evaluator: its `Evaluator` or `ExitEvaluator`.
    state: `State`.
    split: `Split` of n images, n > 0.
    phase: that the state is in.

  Returns:
    (score, larger is better, by which the best checkpoint is chosen; dict of
    metrics).
  """
  run = _exits if isinstance(system, staged.StagedSystem) else _policy
  return run(system, evaluator, state, split, phase)


def _policy(system, evaluator, state, split, phase):
  """The score is the accuracy, less what is spent above the budget."""
  config, params = system.config, system_lib.final_params(state)
  if phase == 'dense':
    out = evaluator.dense(params['vit'], split)
    ratio = 1.
  elif phase == 'static':
    chosen = static.actions(
        config.static, system.model.num_adaptive, len(split),
        jax.random.key(config.seed))
    out = evaluator.given(params['vit'], split, np.asarray(chosen.keep))
    ratio = float(system.plain_cost.ratio(out.actions).mean())
  else:
    out = evaluator.adaptive(
        params, state.stats, split, threshold=config.nets.threshold)
    ratio = float(system.cost.ratio(out.actions).mean())
  metrics = dict(accuracy=out.accuracy, loss=float(out.loss.mean()),
                 macs_ratio=ratio)
  return out.accuracy - max(0., ratio - config.mac_target), metrics


def _exits(system, evaluator, state, split, phase):
  """The score is the mean over the exits that learn.

  Of a model with branches it is the last exit's, as without exits.
  """
  params = system.all_params(state, system_lib.final_params(state))
  out = evaluator(params, split)
  metrics = {'loss': out.loss.mean(1), **evaluator.metrics(out.score)}
  scores = out.score.mean(1)
  if phase == 'last_exit' or system.paper_cost is not None:
    score = scores[-1]
  else:
    score = scores[:-1 if phase == 'classifier_wise' else None].mean()
  return float(score), metrics
