"""From a work directory to its report."""

from etils import epath
import jax
from ml_collections import config_dict
import numpy as np

from adavit_jax.report import baselines
from adavit_jax.report import compare
from adavit_jax.report import exits
from adavit_jax.report import masks
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.train import checks
from adavit_jax.train import loop
from adavit_jax.train import restore
from adavit_jax.train import staged
from adavit_jax.train import system as system_lib
from adavit_jax.train.phases import static as static_phase

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
  _, step, info = restore.find(workdir, best=best)
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
  trainer = loop.Trainer(config, workdir, evaluates=True)
  # A mask spends what it spends: its run is the same for another budget.
  trainer.config.mac_target = own_target
  size = config.joint.batch_size
  static = static and info['phase'] == 'joint'
  if static and size % trainer.mesh.size:
    raise ValueError(f'static sub-networks are tuned with joint.batch_size='
                     f'{size}, which these {trainer.mesh.size} devices do not '
                     f'divide; use as many as do, or give --nostatic')
  checks.same_classes(info, trainer.dataset, workdir)
  checks.same_images(info, trainer.dataset, workdir)
  unfinished = restore.warn_of_unfinished(workdir)
  about = dict(
      workdir=str(workdir), phase=info['phase'], step=int(step), best=best,
      finished=not unfinished,
      seed=config.seed,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      budget=config.mac_target, num_test=len(trainer.dataset.test))
  if isinstance(trainer.system, staged.StagedSystem):
    return exits.evaluate(trainer, about, threshold=threshold,
                          budget=config.mac_target, best=best)
  if rule is not None:
    raise ValueError(f'--rule={rule} is for a model with exits, and {workdir} '
                     f'holds a policy; leave it out')
  if threshold is not None and not (np.ndim(threshold) == 0
                                    and 0 < threshold < 1):
    raise ValueError(f'--threshold={threshold} must be in (0, 1): it is the '
                     f"policy's")
  if static_phase.at_inference(trainer.system, info['phase']) is not None:
    for name, value in dict(threshold=threshold, mac_target=mac_target).items():
      if value is not None:
        raise ValueError(f'--{name}={value} is for a policy, and {workdir} '
                         f"ends with its phase {info['phase']!r}, in which "
                         f'none decides; leave it out')
    result = dict(about, **_without_policy(trainer, workdir, info, best))
    _show_rows(result, [(key, key) for key in ('dense', 'static')])
    return result
  report = baselines.Report(
      trainer, workdir, config.mac_target, best=best)
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
    _show(result, trainer.system.model)
    _draw(result, outputs, trainer, workdir)
  return result


def _without_policy(trainer, workdir, info, best):
  """Rows of a run that ends with its dense or a static phase."""
  system = trainer.system
  state = restore.state(system, trainer.mesh, workdir, best=best)
  def row(vit, actions):
    return compare.row(trainer.evaluator.given(
        vit, trainer.dataset.test, np.asarray(actions.keep)),
                       system.plain_cost)
  vit = system_lib.final_params(state)['vit']
  every = static_phase.at_inference(system, 'dense')
  if info['phase'] == 'dense':
    return dict(dense=row(vit, every))
  mask = static_phase.at_inference(system, 'static')
  return dict(dense=row(state.teacher, every), static=row(vit, mask))


def _show_rows(result, labels=_LABELS):
  if jax.process_index() == 0:
    print(f"\n{result['num_test']} test images, seed {result['seed']}, "
          f"{result['device']}\n")
    print(table.format_rows(
        [(label, result[key]) for key, label in labels if key in result]))


def _show(result, model):
  _show_rows(result)
  print()
  print(table.format_policy(result['adaptive'], model.num_adaptive))
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
    print(table.format_policy(one['adaptive'], model.num_adaptive))


def _draw(result, outputs, trainer, workdir):
  path = lambda name: epath.Path(workdir) / name
  pictures.keep_rates(result['adaptive']['keep_rate'],
                      trainer.system.model.num_fixed, path('keep_rate.png'))
  pictures.accuracy_against_macs(result, path('accuracy_macs.png'))
  pictures.easy_and_hard(
      trainer.dataset.test, outputs.keep, trainer.dataset.class_names,
      outputs.prediction, path('easy_hard.png'))
