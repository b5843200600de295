"""The options of a run's report, and what is wrong with them."""

from typing import Any, NamedTuple

from etils import epath

from adavit_jax.policies import knob as knob_lib
from adavit_jax.policies import value as value_lib
from adavit_jax.report import promised_row
from adavit_jax.runs import saved_run
from adavit_jax.train.phases.phase import choice


class Options(NamedTuple):
  """Arguments of `run_report.evaluate`."""
  threshold: Any
  best: bool
  static: bool
  data_dir: str | None
  rule: str | None
  mac_target: float | None
  slack: float | None
  curve: str | None
  attributes: dict[str, Any]
  decide: str | None
  price: float | None
  ceiling: bool
  actions: str | None
  wanted: promised_row.Wanted | None

  @property
  def risk(self):
    return self.wanted and self.wanted.risk

  def given(self, name):
    """Returns an argument, None if it is left out or switched off."""
    value = getattr(self, name)
    return None if value is False else value


def tunes_static(phase, options):
  """Whether static sub-networks are tuned for a run that ends with a phase."""
  return (options.static and not options.attributes
          and options.actions is None and phase == 'joint')


def check_with_exits(trainer, saved, state, workdir, options):
  """Raises a ValueError for options that do not fit a model with exits."""
  for name in ('actions', 'price', 'ceiling'):
    if (value := options.given(name)) is not None:
      raise ValueError(f'--{name}={value} is for a model without exits, but '
                       f'{workdir} holds one with exits; leave it out')
  for name in ('slack', 'curve'):
    value = getattr(options, name)
    if value is not None and options.threshold is not None:
      raise ValueError(f'--{name}={value} calibrates thresholds and '
                       f'--threshold={options.threshold} sets them; leave one '
                       f'out')
  system = trainer.system
  if options.decide == 'value' and not (
      system.after(saved.info['phase']).decider == 'policy'
      and value_lib.is_fitted(state.params['value'])):
    raise ValueError(f'--decide=value needs a value policy, but {workdir} has '
                     f'none; leave it out')
  if options.wanted is not None:
    promised_row.check(trainer, saved.info['phase'], options.wanted)


def check_without_exits(trainer, saved, state, workdir, options):
  """Raises a ValueError for options that do not fit a model without exits."""
  size = trainer.config.joint.batch_size
  if (tunes_static(saved.info['phase'], options)
      and size % trainer.mesh.size):
    raise ValueError(f'joint.batch_size={size}, with which static sub-networks '
                     f'are tuned, is not a multiple of the {trainer.mesh.size} '
                     f'devices; use a number of devices that divides it, or '
                     f'give --nostatic')
  if tunes_static(saved.info['phase'], options):
    _check_origin(trainer.config, workdir)
  for name in ('rule', 'slack', 'curve'):
    if (value := getattr(options, name)) is not None:
      raise ValueError(f'--{name}={value} is for a model with exits, but '
                       f'{workdir} holds one without; leave it out')
  of_policy = 'threshold', 'price', 'mac_target', 'decide', 'risk', 'ceiling'
  for name in of_policy:
    value = options.given(name)
    if value is not None and options.actions is not None:
      raise ValueError(f'--{name}={value} is for the learned policy, but '
                       f'--actions={options.actions} chooses the layers; leave '
                       f'one out')
  if trainer.system.after(saved.info['phase']).actions is None:
    for decide, knob in knob_lib.KNOBS.items():
      if (number := getattr(options, knob.name)) is not None:
        try:
          knob.check(number)
        except ValueError as error:
          raise ValueError(f'--{error}') from error
        choice(f'--{knob.name} is given and nets.decide',
               trainer.config.nets.decide, (decide,))
    if options.actions is None:
      _check_policy(trainer, state, workdir, options)
    if options.wanted is not None:
      promised_row.check(trainer, saved.info['phase'], options.wanted)
    return
  for name in of_policy:
    if (value := options.given(name)) is not None:
      raise ValueError(f'--{name}={value} is for a policy, but {workdir} ends '
                       f"with the phase {saved.info['phase']!r}, which has "
                       f'none; leave it out')


def _check_policy(trainer, state, workdir, options):
  """Raises a ValueError unless the policy can be set and compared."""
  decide = trainer.config.nets.decide
  if not value_lib.is_fitted(state.params['value']) and (
      options.ceiling or decide == 'value'):
    raise ValueError(f"--ceiling and nets.decide='value' need a run with the "
                     f'phase warm_start, but {workdir} has fitted no value '
                     f'policy; leave them out')
  name = knob_lib.KNOBS[decide].name
  if not len(trainer.dataset.holdout) and getattr(options, name) is None:
    raise ValueError(f'no images were held out to calibrate the {name} on; '
                     f'give --{name}=0.5, or train with '
                     f'--config.data.holdout=0.1')


def _check_origin(config, workdir):
  """Checks that the model that the joint phase began with is still there.

  Static sub-networks that were tuned before do not need it.
  """
  if (config.phases[0] != 'joint' or not config.init.workdir
      or (epath.Path(workdir) / 'static').exists()):
    return
  try:
    with saved_run.Run(config.init.workdir) as run:
      run.find(phase=config.init.phase)
  except ValueError as error:
    raise ValueError(f'static sub-networks are tuned from the model of '
                     f'init.workdir={config.init.workdir!r}, which cannot be '
                     f'read ({error}); give --nostatic') from error
