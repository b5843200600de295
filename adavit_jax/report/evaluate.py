"""From a work directory to its report."""

from absl import logging
from etils import epath
import jax
from ml_collections import config_dict
import numpy as np

from adavit_jax.report import baselines
from adavit_jax.report import exits
from adavit_jax.report import masks
from adavit_jax.report import pictures
from adavit_jax.report import table
from adavit_jax.train import checks
from adavit_jax.train import loop
from adavit_jax.train import restore
from adavit_jax.train import staged

_LABELS = (
    ('dense', 'dense'), ('adaptive', 'adaptive'),
    ('adaptive_at_static', 'adaptive, at the MACs below'),
    ('static', 'static, best, tuned alike'),
    ('static_last', 'static, last k, tuned alike'), ('random', 'random'),
    ('shuffled', 'adaptive, shuffled'))


def evaluate(workdir, *, threshold=None, best=False, static=True,
             data_dir=None, rule=None):
  """Evaluates a run on the test split; prints tables and draws pictures.

  Args:
    workdir: directory of a run whose policy is trained, or whose model has
      exits: see `exits.evaluate`.
    threshold: the policy's, or that of every exit's confidence; None
      calibrates it to the config's `mac_target` on held-out data.
    best: the best checkpoint instead of the last.
    static: also tune static sub-networks for the same MACs as a policy's.
    data_dir: replaces the config's.
    rule: replaces the config's `exits.rule`.

  Returns:
    The report as a dict that JSON can hold, or None if a signal stopped it.
    `finished` in it says whether the run has gone through all of its phases.

  Raises:
    ValueError: if there is no such run, its data is missing or has other
      classes or images, a policy's threshold is outside (0, 1), or a rule is
      unknown or given for a policy.
  """
  _, step, info = restore.find(workdir, best=best)
  config = config_dict.ConfigDict(info['config'])
  config.phases = tuple(config.phases)
  if data_dir is not None:
    config.data.data_dir = data_dir
  if rule is not None:
    config.exits.rule = rule
  trainer = loop.Trainer(config, workdir)
  checks.same_classes(info, trainer.dataset, workdir)
  checks.same_images(info, trainer.dataset, workdir)
  unfinished = restore.unfinished(*restore.find(workdir)[1:])
  if unfinished:
    logging.warning('%s is %s, and this a report of what it has reached; the '
                    'same train.py goes on with it', workdir, unfinished)
  about = dict(
      workdir=str(workdir), phase=info['phase'], step=int(step), best=best,
      finished=not unfinished,
      seed=config.seed,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      num_test=len(trainer.dataset.test))
  if isinstance(trainer.system, staged.StagedSystem):
    return exits.evaluate(trainer, about, threshold=threshold, best=best)
  if rule is not None:
    raise ValueError(f'--rule={rule} is for a model with exits, and {workdir} '
                     f'holds a policy; leave it out')
  if threshold is not None and not (np.ndim(threshold) == 0
                                    and 0 < threshold < 1):
    raise ValueError(f'--threshold={threshold} must be in (0, 1): it is the '
                     f"policy's")
  report = baselines.Report(trainer, workdir, best=best)
  result = dict(about, dense=report.dense_row())
  rows, outputs = report.final(threshold)
  result.update(rows)
  one = report.one_set_of_weights()
  if static and report.phase == 'joint':
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


def _show(result, model):
  print(f"\n{result['num_test']} test images, seed {result['seed']}, "
        f"{result['device']}\n")
  print(table.format_rows(
      [(label, result[key]) for key, label in _LABELS if key in result]))
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
