"""From a work directory to its report."""

from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import config_dict
import numpy as np

from adavit_jax.models import plan
from adavit_jax.report import baselines
from adavit_jax.report import compare
from adavit_jax.report import exit_report
from adavit_jax.report import masks
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.runs import checks
from adavit_jax.runs import loop
from adavit_jax.runs import run as run_lib
from adavit_jax.train import state as state_lib

_LABELS = (
    ('dense', 'dense'), ('adaptive', 'adaptive'),
    ('adaptive_at_static', 'adaptive, at the MACs below'),
    ('static', 'static, best, tuned alike'),
    ('static_last', 'static, last k, tuned alike'), ('random', 'random'),
    ('shuffled', 'adaptive, shuffled'))


def evaluate(workdir, *, threshold=None, best=False, static=True,
             data_dir=None, rule=None, mac_target=None):
  """Evaluates a run on the test split; prints tables and draws pictures.

  Args:
    workdir: directory of a run; of a model with exits see `exits.evaluate`.
      Without a trained policy the report has the rows dense and, after a
      static phase, static.
    threshold: the policy's, or that of every exit's confidence; None
      calibrates it to the config's `mac_target` on held-out data.
    best: the best checkpoint instead of the last.
    static: also tune static sub-networks for the same MACs as a policy's.
    data_dir: replaces the config's.
    rule: replaces the config's `exits.rule`.
    mac_target: replaces the config's.

  Returns:
    The report as a dict that JSON can hold, or None if a signal stopped it.
    `finished` in it says whether the run has gone through all of its phases.

  Raises:
    ValueError: if there is no such run, its data is missing or has other
      classes or images, a policy's threshold is outside (0, 1), a rule is
      unknown or given for a policy, threshold or mac_target are given
      together, cannot be met or have no policy to use them, or static
      sub-networks cannot be tuned on so many devices.
  """
  asked = _Asked(threshold, best, static, data_dir, rule, mac_target)
  def read():
    with run_lib.Run(workdir) as run:
      return _evaluate(run, workdir, asked)
  return run_lib.reread(read)


class _Asked(NamedTuple):
  """Arguments of `evaluate`."""
  threshold: Any
  best: bool
  static: bool
  data_dir: str | None
  rule: str | None
  mac_target: float | None


def _evaluate(run, workdir, asked):
  saved = run.find(best=asked.best)
  trainer = _trainer(run, saved, workdir, asked)
  budget = asked.mac_target or trainer.config.mac_target
  about = dict(
      workdir=str(workdir), phase=saved.info['phase'], step=saved.step,
      best=asked.best, finished=not run.warn_of_unfinished(),
      seed=trainer.config.seed,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      budget=budget, num_test=len(trainer.dataset.test))
  if trainer.system.staged:
    return exit_report.evaluate(trainer, run, saved, about, budget=budget,
                          threshold=asked.threshold)
  _check_without_exits(trainer, saved, workdir, asked)
  if trainer.system.actions(saved.info['phase']) is not None:
    result = dict(about, **_without_policy(trainer, run, saved))
    _show_rows(result, [(key, key) for key in ('dense', 'static')])
    return result
  return _with_policy(trainer, run, saved, about, asked)


def _trainer(run, saved, workdir, asked):
  """A `Trainer` of the run's config, with what was asked for instead."""
  config = config_dict.ConfigDict(saved.info['config'])
  config.phases = tuple(config.phases)
  if asked.data_dir is not None:
    config.data.data_dir = asked.data_dir
  if asked.rule is not None:
    config.exits.rule = asked.rule
  if asked.mac_target is not None and asked.threshold is not None:
    raise ValueError(f'--mac_target={asked.mac_target} calibrates thresholds, '
                     f'and --threshold={asked.threshold} gives them: leave one '
                     f'out')
  trained_for = config.mac_target
  if asked.mac_target is not None:
    config.mac_target = asked.mac_target  # and is checked with the rest
  trainer = loop.Trainer(config, workdir, run=run)
  # The run of a static mask is the same for every budget.
  trainer.config.mac_target = trained_for
  checks.same_classes(saved.info, trainer.dataset, workdir)
  checks.same_images(saved.info, trainer.dataset, workdir)
  return trainer


def _tunes_static(saved, asked):
  return asked.static and saved.info['phase'] == 'joint'


def _check_without_exits(trainer, saved, workdir, asked):
  """Raises a ValueError for what a model without exits has no use for."""
  size, threshold = trainer.config.joint.batch_size, asked.threshold
  if _tunes_static(saved, asked) and size % trainer.mesh.size:
    raise ValueError(f'static sub-networks are tuned with joint.batch_size='
                     f'{size}, which these {trainer.mesh.size} devices do not '
                     f'divide; use as many as do, or give --nostatic')
  if asked.rule is not None:
    raise ValueError(f'--rule={asked.rule} is for a model with exits, and '
                     f'{workdir} holds one without; leave it out')
  if threshold is not None and not (np.ndim(threshold) == 0
                                    and 0 < threshold < 1):
    raise ValueError(f'--threshold={threshold} must be in (0, 1): it is the '
                     f"policy's")
  if trainer.system.actions(saved.info['phase']) is None:
    return
  for name in ('threshold', 'mac_target'):
    if (value := getattr(asked, name)) is not None:
      raise ValueError(f'--{name}={value} is for a policy, and {workdir} ends '
                       f"with its phase {saved.info['phase']!r}, in which none "
                       f'decides; leave it out')


def _with_policy(trainer, run, saved, about, asked):
  """The report of a run whose policy decides; None if a signal stopped it."""
  report = baselines.Report(trainer, run, saved, about['budget'])
  result = dict(about, dense=report.dense_row())
  rows, outputs = report.final(asked.threshold)
  result.update(rows)
  one = report.one_set_of_weights()
  if _tunes_static(saved, asked):
    chosen = report.static_masks(result['adaptive']['macs_ratio'])
    for name, actions in chosen.items():
      result[name] = masks.finetuned(trainer, workdir=about['workdir'],
                                     actions=actions)
      if result[name] is None:
        return None
    if len(trainer.dataset.holdout):
      result['adaptive_at_static'] = report.at(result['static']['macs_ratio'])
  result['sweep'] = report.sweep()
  result['one_set_of_weights'] = one
  if jax.process_index() == 0:
    _show(result, plan.num_layers(trainer.system.model))
    _draw(result, outputs, trainer, about['workdir'])
  return result


def _without_policy(trainer, run, saved):
  """Rows of a run at whose end no policy decides."""
  system, test = trainer.system, trainer.dataset.test
  state = run.state(saved, system, trainer.mesh)
  params = state_lib.final_params(state)
  row = lambda out: compare.row(out, system.plain_cost)
  mask = system.actions(saved.info['phase'])
  if state.teacher is None:
    return dict(dense=row(trainer.evaluator.dense(params, test)))
  return dict(dense=row(trainer.evaluator.dense(state.teacher, test)),
              static=row(trainer.evaluator.with_actions(params, test, mask)))


def _show_rows(result, labels=_LABELS):
  if jax.process_index() == 0:
    print(f"\n{result['num_test']} test images, seed {result['seed']}, "
          f"{result['device']}\n")
    print(table.format_rows(
        [(label, result[key]) for key, label in labels if key in result]))


def _show(result, num_layers):
  _show_rows(result)
  print()
  print(table.format_policy(result['adaptive'], num_layers))
  one = result['one_set_of_weights']
  if one:
    labels = [('adaptive', 'adaptive'), ('static', 'static, best'),
              ('random', 'random'), ('shuffled', 'adaptive, shuffled')]
    labels += [(key, f"policy {key[8]} of Table 1, {key[10:]} layers")
               for key in one if key.startswith('table_1')]
    print('\nOne set of weights, no tuning for the budget:\n')
    print(table.format_rows([('dense', result['dense'])]
                            + [(label, one[key]) for key, label in labels]))
    print()
    print(table.format_policy(one['adaptive'], num_layers))


def _draw(result, outputs, trainer, workdir):
  path = lambda name: epath.Path(workdir) / name
  pictures.keep_rates(result['adaptive']['keep_rate'],
                      plan.layer_encoders(trainer.system.model),
                      path('keep_rate.png'))
  pictures.accuracy_against_macs(result, path('accuracy_macs.png'))
  pictures.easy_and_hard(
      trainer.dataset.test, outputs.actions.num_kept,
      trainer.dataset.class_names,
      outputs.prediction, path('easy_hard.png'))
