"""From a work directory to its report."""

from etils import epath
import jax
from ml_collections import config_dict
import numpy as np

from adavit_jax.models import plan
from adavit_jax.report import baselines
from adavit_jax.report import compare
from adavit_jax.report import exits
from adavit_jax.report import masks
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.train import checks
from adavit_jax.train import loop
from adavit_jax.train import run as run_lib
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
  def read():
    with run_lib.Run(workdir) as run:
      return _evaluate(run, workdir, threshold, best, static, data_dir, rule,
                       mac_target)
  return run_lib.reread(read)


def _evaluate(run, workdir, threshold, best, static, data_dir, rule,
              mac_target):
  saved = run.find(best=best)
  info = saved.info
  config = config_dict.ConfigDict(info['config'])
  config.phases = tuple(config.phases)
  if data_dir is not None:
    config.data.data_dir = data_dir
  if rule is not None:
    config.exits.rule = rule
  if mac_target is not None and threshold is not None:
    raise ValueError(f'--mac_target={mac_target} calibrates thresholds, and '
                     f'--threshold={threshold} gives them: leave one out')
  own_target = config.mac_target
  if mac_target is not None:
    config.mac_target = mac_target  # and is checked with the rest
  trainer = loop.Trainer(config, workdir, run=run)
  # A mask spends what it spends: its run is the same for another budget.
  trainer.config.mac_target = own_target
  checks.same_classes(info, trainer.dataset, workdir)
  checks.same_images(info, trainer.dataset, workdir)
  unfinished = run.warn_of_unfinished()
  about = dict(
      workdir=str(workdir), phase=info['phase'], step=saved.step, best=best,
      finished=not unfinished,
      seed=config.seed,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      budget=config.mac_target, num_test=len(trainer.dataset.test))
  if trainer.system.staged:
    return exits.evaluate(trainer, run, saved, about, threshold=threshold,
                          budget=config.mac_target)
  size, static = config.joint.batch_size, static and info['phase'] == 'joint'
  if static and size % trainer.mesh.size:
    raise ValueError(f'static sub-networks are tuned with joint.batch_size='
                     f'{size}, which these {trainer.mesh.size} devices do not '
                     f'divide; use as many as do, or give --nostatic')
  if rule is not None:
    raise ValueError(f'--rule={rule} is for a model with exits, and {workdir} '
                     f'holds one without; leave it out')
  if threshold is not None and not (np.ndim(threshold) == 0
                                    and 0 < threshold < 1):
    raise ValueError(f'--threshold={threshold} must be in (0, 1): it is the '
                     f"policy's")
  if trainer.system.actions(info['phase']) is not None:
    for name, value in dict(threshold=threshold, mac_target=mac_target).items():
      if value is not None:
        raise ValueError(f'--{name}={value} is for a policy, and {workdir} '
                         f"ends with its phase {info['phase']!r}, in which "
                         f'none decides; leave it out')
    result = dict(about, **_without_policy(trainer, run, saved))
    _show_rows(result, [(key, key) for key in ('dense', 'static')])
    return result
  report = baselines.Report(trainer, run, saved, config.mac_target)
  result = dict(about, dense=report.dense_row())
  rows, outputs = report.final(threshold)
  result.update(rows)
  one = report.one_set_of_weights()
  if static:
    chosen = report.static_masks(result['adaptive']['macs_ratio'])
    for name, actions in chosen.items():
      result[name] = masks.finetuned(trainer, workdir, actions)
      if result[name] is None:
        return None
    if len(trainer.dataset.holdout):
      result['adaptive_at_static'] = report.at(result['static']['macs_ratio'])
  result['sweep'] = report.sweep()
  result['one_set_of_weights'] = one
  if jax.process_index() == 0:
    _show(result, plan.num_layers(trainer.system.model))
    _draw(result, outputs, trainer, workdir)
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
              static=row(trainer.evaluator.given(params, test, mask)))


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
