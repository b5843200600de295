"""What a checkpoint's info says of the run so far."""

from adavit_jax.train import phases


def so_far(info):
  """The phases of the run up to that of the checkpoint, a list."""
  names = list(info['config']['phases'])
  return names[:names.index(info['phase']) + 1]


def unfinished(step, info):
  """Where a run stands that has phases to go: a clause, '' at its end.

  Args:
    step: of its newest checkpoint.
    info: of that checkpoint.
  """
  phase, names = info['phase'], list(info['config']['phases'])
  if info['finished'] and phase == names[-1]:
    return ''
  return (f"at step {step - info['start']} of {info['config'][phase]['steps']} "
          f"of the phase {phase!r} of {', '.join(names)}")


def sets_price(config, names):
  """Whether one of some phases finds or steers the price of MACs."""
  return any(name == 'warm_start' or name in ('policy', 'joint')
             and config[name]['reward'] == 'macs' for name in names)


def has_price(info):
  """Whether a run, or one that it began from, has set the price of MACs."""
  return sets_price(info['config'], so_far(info)) or info['had_price']


def policy_has_learned(info):
  """Whether a run's policy was trained since the model was last replaced.

  False where the run has none: it does not keep that of the run before.
  """
  config = info['config']
  if not (config['exits']['policy']
          or phases.training('policy', config['phases'])):
    return False
  return learned_policy(so_far(info), info['policy_learned'])


def learned_policy(names, before):
  """Whether a policy is trained after some phases.

  Args:
    names: phases in their order.
    before: whether it was before them.
  """
  for name in reversed(names):
    if 'policy' in phases.PHASES[name].trains:
      return True
    if phases.PHASES[name].from_scratch:
      return False
  return before
