"""Which parameters of a run another system can use."""

import shlex

from adavit_jax.models import plan
from adavit_jax.runs import history
from adavit_jax.train import config as config_lib
from adavit_jax.weights import attributes


def common_groups(saved, wanted, info, workdir):
  """Returns the names of the groups that a run provides for a system, a set.

  Args:
    saved: `System` of the run.
    wanted: `System` that is to use its parameters.
    info: the info of a checkpoint of the run, see `saved_run.Saved`.
    workdir: directory of the run.

  Raises:
    ValueError: if the run is of a model with other attributes, has other tokens
      where exits or the policy read them, policy networks with other inputs, or
      no trained policy where one is needed.
  """
  _check_model(saved.model, wanted.model, workdir)
  groups = {'backbone'}
  if wanted.model.exits and saved.model.exits == wanted.model.exits:
    groups.add('heads')
    for place, head in wanted.model.exits:
      if head in ('mlp_mixer', 'resmlp'):  # their matrices mix the tokens
        _check_tokens(saved, wanted, place, f'the exit head {head!r}', workdir)
  # A policy that was not trained may be replaced by a different one.
  learned = saved.nets and history.policy_has_learned(info)
  if wanted.nets and learned:
    _check_nets(saved, wanted, workdir)
    groups |= {'policy', 'policy_stats', 'value'}
  elif wanted.config.exits.policy and not config_lib.trains_policy(
      wanted.config):
    raise ValueError(f"{workdir!r} has no trained policy at the end of its "
                     f"phase {info['phase']!r}, but exits.policy=True needs "
                     f'one; set --config.init.phase=joint, or another '
                     f'init.workdir')
  return groups


def _check_model(saved, wanted, workdir):
  """Checks attributes on which the shapes of parameters need not depend.

  The parameters themselves tell models of two classes apart.
  """
  if type(saved) is not type(wanted):
    return
  wrong = attributes.differing(attributes.of(saved), wanted)
  if wrong:
    raise ValueError(
        f'{workdir!r} holds a model with ' + ', '.join(
            f'{name}={then} (not {now})' for name, (then, now) in wrong.items())
        + '; set ' + ' '.join(
            shlex.quote(f'--config.model.{name}={getattr(saved, name)}')
            for name in wrong))


def _check_nets(saved, wanted, workdir):
  """Checks the inputs of the policy networks, which may differ in equal shapes.
  """
  fields = {f'nets.{field}': (saved.config.nets[field],
                              wanted.config.nets[field])
            for field in ('tokens', 'aux', 'head', 'hidden', 'conv')}
  fields['model.num_fixed'] = saved.model.num_fixed, wanted.model.num_fixed
  if wanted.config.nets.tokens == 'all':
    _check_tokens(saved, wanted, wanted.model.num_fixed,
                  "a policy with nets.tokens='all'", workdir)
  differ = [f'--config.{field}={then}' for field, (then, now) in fields.items()
            if then != now]
  if differ:
    raise ValueError(f'{workdir!r} holds policy networks with other inputs '
                     f'than the config; set {" ".join(differ)}, or, for new '
                     f'networks, --config.init.phase=dense')


def _check_tokens(saved, wanted, place, reader, workdir):
  """Checks the number of tokens where parameters depend on it."""
  then, now = (plan.tokens_at(system.model, place).num
               for system in (saved, wanted))
  if then != now:
    names = ', '.join(f'model.{name}' for name in wanted.model.unsaved)
    raise ValueError(f'{workdir!r} holds {reader}, which reads {then} tokens '
                     f'behind {place} encoders, but this model has {now}: give '
                     f"that run's values of {names or 'the model'}, or such as "
                     f'leave out tokens only behind that place')
