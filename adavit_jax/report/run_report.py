"""Makes the report of a run from its work directory."""

import copy

import jax
from ml_collections import config_dict
import numpy as np

from adavit_jax import paths
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import knob as knob_lib
from adavit_jax.report import exit_report
from adavit_jax.report import policy_page
from adavit_jax.report import policy_report
from adavit_jax.report import report_options
from adavit_jax.report import rows as rows_lib
from adavit_jax.report import static_masks
from adavit_jax.runs import checks
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.train import state as state_lib
from adavit_jax.train.phases.phase import choice


def evaluate(workdir, *, threshold=None, best=False, static=True,
             data_dir=None, rule=None, mac_target=None, slack=None, curve=None,
             attributes=None, decide=None, price=None, ceiling=False,
             actions=None, wanted=None):
  """Evaluates a run on the test split; prints tables and draws pictures.

  Args:
    workdir: directory of a run. For a model with exits see
      `exit_report.evaluate`. Without a trained policy, the report has the rows
      dense and, after a static phase, static.
    threshold: the policy's threshold, or the confidence threshold of the exits;
      None calibrates it on held-out images to the config's `mac_target`.
    best: use the best checkpoint instead of the last.
    static: also tune static sub-networks for the same MACs as the policy's; not
      with `attributes`.
    data_dir: replaces the config's `data.data_dir`.
    rule: replaces the config's `exits.rule`.
    mac_target: replaces the config's `mac_target`.
    slack: replaces the config's `exits.slack`.
    curve: for a model with exits, one of `exits.calibrate.CURVES`; None for
      'best'.
    attributes: {name: value} of the model that replace the config's, of those
      that may change after training.
    decide: replaces the config's `nets.decide`.
    price: the price of a value policy; None calibrates it as the threshold.
    ceiling: also run every candidate mask on every test image, see
      `ceiling.rows`.
    actions: layers for every image, as text for `fixed.parse_choice`. The
      report then has the rows dense and given, of these layers, and no
      pictures.
    wanted: `promised_row.Wanted`: also find thresholds with a promise; not with
      `best`.

  Returns:
    The report as a JSON-serializable dict, or None if a signal stopped it. Its
    field `finished` tells whether the run has completed all of its phases.

  Raises:
    ValueError: if there is no such run; its data is missing or has other
      classes or images; a policy's threshold is outside (0, 1); a rule or curve
      is unknown; a rule, slack or curve is given for a policy; threshold is
      given with mac_target, slack or curve; threshold or mac_target cannot be
      met or is given without a policy; static sub-networks cannot be tuned on
      this number of devices, or without the run in `init.workdir`; actions do
      not fit the layers, or are given for a model with exits or with a
      threshold; or no promise can be made.
  """
  if wanted is not None and best:
    raise ValueError(f'--risk={wanted.risk}: the best checkpoint was chosen on '
                     f'the held-out images, which cannot make a promise for it '
                     f'then; leave out --best')
  options = report_options.Options(
      threshold, best, static, data_dir, rule, mac_target, slack, curve,
      attributes or {}, decide, price, ceiling, actions, wanted)
  with saved_run.Run(workdir) as run:
    return _evaluate(run, run.workdir, options)


def _evaluate(run, workdir, options):
  saved = run.find(best=options.best)
  if jax.process_index() == 0:  # before hours of work; it writes the report
    paths.to_write(f'{workdir}/report.json', '--workdir')
  trainer = _trainer(run, saved, workdir, options)

  def read():  # again, since the data may have taken minutes to load
    saved = run.find(best=options.best)
    return saved, run.state(saved, trainer.system, trainer.mesh)

  saved, state = saved_run.reread(read)
  budget = options.mac_target or trainer.config.mac_target
  metadata = dict(
      workdir=str(workdir), phase=saved.info['phase'], step=saved.step,
      best=options.best, finished=not run.warn_of_unfinished(),
      seed=trainer.config.seed,
      device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      budget=budget, num_test=len(trainer.dataset.test),
      attributes=options.attributes)
  if trainer.system.staged:
    report_options.check_with_exits(trainer, saved, state, workdir, options)
    return exit_report.evaluate(trainer, state, metadata, budget=budget,
                                threshold=options.threshold,
                                curve=options.curve or 'best',
                                wanted=options.wanted)
  report_options.check_without_exits(trainer, saved, state, workdir, options)
  if options.actions is not None:
    result = dict(metadata, **_given(trainer, state, options.actions))
    policy_page.show_rows(
        result, [('dense', 'dense'), (options.actions, 'given')],
        'report_actions.html')
    return result
  if trainer.system.after(saved.info['phase']).actions is not None:
    result = dict(metadata, **_without_policy(trainer, state, saved))
    policy_page.show_rows(result, [
        (key, key) for key in ('dense', 'static') if key in result])
    return result
  return _with_policy(trainer, run, state, metadata, options)


def _trainer(run, saved, workdir, options):
  """Returns a `Trainer` of the run's config with the options applied."""
  config = copy.deepcopy(saved.info['config'])
  # Before a `ConfigDict` refuses other types by an error of its own.
  saved_run.set_attributes(config, options.attributes)
  config = config_dict.ConfigDict(config)
  config.phases = tuple(config.phases)
  _name_origin(config.init, saved.info['began_from'])
  if options.data_dir is not None:
    config.data.data_dir = options.data_dir
  if options.rule is not None:
    config.exits.rule = options.rule
  if options.slack is not None:
    config.exits.slack = options.slack
  if options.decide is not None:
    choice('--decide', options.decide, tuple(knob_lib.KNOBS))
    config.nets.decide = options.decide
  for name in ('threshold', 'price'):
    number = getattr(options, name)
    if options.mac_target is not None and number is not None:
      raise ValueError(f'--mac_target={options.mac_target} calibrates the '
                       f'{name} and --{name}={number} sets it; leave one out')
  trained_for = config.mac_target
  if options.mac_target is not None:
    config.mac_target = options.mac_target  # `Trainer` checks it
  trainer = loop.Trainer(config, workdir, run=run)
  # Restored, since the run of a static mask must not depend on the budget.
  trainer.config.mac_target = trained_for
  checks.same_classes(saved.info, trainer.dataset, workdir)
  checks.same_images(saved.info, trainer.dataset, workdir)
  return trainer


def _name_origin(init, began_from):
  """Sets `init.phase` to the phase that a run began from, if it ended there.

  The run in `init.workdir` may have gone on since then.
  """
  if not init.workdir or init.phase:
    return
  try:
    with saved_run.Run(init.workdir) as run:
      run.find(phase=began_from)
  except ValueError:
    return
  init.phase = began_from


def _with_policy(trainer, run, state, metadata, options):
  """Reports on a run whose policy decides; None if a signal stopped it."""
  report = policy_report.Report(trainer, run, state, metadata['budget'])
  by_value = report.by_value()
  result = dict(metadata, dense=report.dense_row())
  rows, outputs = report.final(getattr(options, report.knob.name))
  result.update(rows)
  if options.wanted is not None:
    result['promised'] = report.promised(options.wanted)
  one = report.one_set_of_weights()
  if by_value and len(trainer.dataset.holdout):
    result['value'] = by_value.at(result['adaptive']['macs_ratio'])
    if one:
      one['value'] = by_value.untuned_at(one['adaptive']['macs_ratio'])
      one['static_at_value'] = rows_lib.interpolate(
          one['frontier'], one['value']['macs_ratio'])
  if options.ceiling:
    result['ceiling'] = by_value.ceiling()
  if report_options.tunes_static(metadata['phase'], options):
    chosen = report.static_masks(result['adaptive']['macs_ratio'])
    for name, actions in chosen.items():
      result[name] = static_masks.finetuned(
          trainer, workdir=metadata['workdir'], actions=actions)
      if result[name] is None:
        return None
    if len(trainer.dataset.holdout):
      result['adaptive_at_static'] = report.at(result['static']['macs_ratio'])
  result['sweep'] = report.sweep()
  result['one_set_of_weights'] = one
  if jax.process_index() == 0:
    policy_page.show(result, outputs, trainer)
  return result


def _without_policy(trainer, state, saved):
  """Returns rows of a run that ends without a policy."""
  system, test = trainer.system, trainer.dataset.test
  params = state_lib.final_params(state)
  row = lambda out: rows_lib.row(out, system.plain_cost)
  mask = system.after(saved.info['phase']).actions
  if state.teacher is None:
    return dict(dense=row(trainer.evaluator.dense(params, test)))
  return dict(dense=row(trainer.evaluator.dense(state.teacher, test)),
              static=row(trainer.evaluator.with_actions(params, test, mask)))


def _given(trainer, state, text):
  """Returns the rows dense and given, for layers that the user chose."""
  system, test = trainer.system, trainer.dataset.test
  params = state_lib.final_params(state)
  row = lambda out: rows_lib.row(out, system.plain_cost)
  num_layers = plan.num_layers(system.model)
  actions = fixed.parse_choice(text, num_layers)
  if isinstance(actions, fixed.Stochastic):
    actions = Actions(*map(np.asarray, fixed.stochastic_rows(
        jax.random.key(trainer.config.seed), np.arange(len(test)), num_layers,
        final=actions.final)))
  dense = params if state.teacher is None else state.teacher
  return dict(
      actions=text, dense=row(trainer.evaluator.dense(dense, test)),
      given=row(trainer.evaluator.with_actions(params, test, actions)))
