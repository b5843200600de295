"""Functions of a checkpoint's info that describe the run so far."""

from adavit_jax.train import phases


def so_far(info):
  """Returns the list of phases that have made at least one step."""
  names = list(info['config']['phases'])
  return names[:names.index(info['phase']) + info.get('begun', True)]


def unfinished(step, info):
  """Describes the progress of an unfinished run; '' if it is finished.

  Args:
    step: step of its newest checkpoint.
    info: the info of that checkpoint.
  """
  phase, names = info['phase'], list(info['config']['phases'])
  if info['finished'] and phase == names[-1]:
    return ''
  return (f"at step {step - info['start']} of {info['config'][phase]['steps']} "
          f"of the phase {phase!r} of {', '.join(names)}")


def remaining(names, info):
  """Returns which phases of a config are not over, in their order.

  Args:
    names: the config's phases.
    info: the info of the newest checkpoint; None before there is one.
  """
  names = list(names)
  if info is None or info['phase'] not in names:
    return names
  return names[names.index(info['phase']) + bool(info['finished']):]


def sets_price(config, names):
  """Returns whether one of the phases sets the price of MACs."""
  return any(name == 'warm_start' or name in ('policy', 'joint')
             and config[name]['reward'] == 'macs' for name in names)


def has_price(info):
  """Returns whether a run, or one it started from, set the price of MACs."""
  return sets_price(info['config'], so_far(info)) or info['had_price']


def policy_has_learned(info):
  """Returns whether the policy of a checkpoint was trained, for its model.

  False if the run has no policy: it does not keep that of an earlier run.
  """
  config = info['config']
  if not (config['exits']['policy']
          or phases.training('policy', config['phases'])):
    return False
  return policy_trained_by(so_far(info), info['policy_learned'])


def policy_trained_by(names, before):
  """Returns whether the policy is trained after the given phases.

  Args:
    names: phases in their order.
    before: whether it was trained before them.
  """
  for name in reversed(names):
    if 'policy' in phases.PHASES[name].trains:
      return True
    if phases.PHASES[name].from_scratch:
      return False
  return before
