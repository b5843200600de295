"""Training runs a list of phases; each module declares one."""

import jax

from adavit_jax import models
from adavit_jax.train.phases import classifier_wise
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import exits
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import last_exit
from adavit_jax.train.phases import layer_wise
from adavit_jax.train.phases import policy
from adavit_jax.train.phases import static
from adavit_jax.train.phases import warm_start

PHASES = {'dense': dense.PHASE, 'warm_start': warm_start.PHASE,
          'policy': policy.PHASE, 'joint': joint.PHASE, 'static': static.PHASE,
          'exits': exits.PHASE, 'last_exit': last_exit.PHASE,
          'classifier_wise': classifier_wise.PHASE,
          'layer_wise': layer_wise.PHASE}


def having(attribute, value=True):
  """Returns the names of the phases whose attribute has the value."""
  return tuple(name for name, phase in PHASES.items()
               if getattr(phase, attribute) == value)


def training(group, names=tuple(PHASES)):
  """Returns the phases among `names` that train a group of parameters."""
  return [name for name in names if group in PHASES[name].trains]


def decider(config, phase):
  """Returns how layers are chosen after a phase: 'all', 'mask' or 'policy'.

  Args:
    config: see `train.config.default_config`.
    phase: one of the config's phases.
  """
  names = list(config.phases)
  for name in reversed(names[:names.index(phase) + 1]):
    if PHASES[name].decides:
      return PHASES[name].decides
  return 'policy' if config.exits.policy else 'all'


def check(system):
  """Raises a ValueError if phases do not fit the model or each other.

  Args:
    system: `System`.
  """
  config, names = system.config, list(system.config.phases)
  for name in names:
    if system.target is not None and not PHASES[name].exits:
      raise ValueError(
          f'phase {name!r} is for classification, but the labels of '
          f'{config.data.name!r} are numbers; choose config.phases from '
          f"{list(having('exits'))}")
    PHASES[name].check(system)
    if config[name].accumulate > 1 and 'backbone' in PHASES[name].trains:
      _check_statistics(system, name)
  weights, weighted = tuple(config.exits.weights), ('exits',)
  if len(system.model.own_exits()) > 1:
    weighted = ('exits', 'dense', 'joint', 'static')
  if weights != (1.,) and not set(weighted).intersection(names):
    raise ValueError(f'exits.weights={weights} is for the phases {weighted}, '
                     f'not for {tuple(names)}; leave it out')
  check_order(system, names)


def _check_statistics(system, name):
  """Raises a ValueError for a backbone with batch statistics."""
  groups = jax.eval_shape(
      lambda: models.init_params(system.model, jax.random.key(0)))
  if 'batch_stats' in groups:
    raise ValueError(
        f'{name}.accumulate={system.config[name].accumulate} splits a batch, '
        f'but {system.config.model.name!r} normalizes with the statistics of '
        f'the whole batch; set it to 1')


def check_order(system, names, before=''):
  """Checks that no phase changes a backbone that trained exits rely on.

  Args:
    system: `System`.
    names: phases in their order; those of another run may come first.
    before: text that names that run, for the message.

  Raises:
    ValueError: if the backbone, or the choice of its layers, changes after the
      added exits were trained and no later phase trains them again; or if the
      backbone is trained with all layers although a policy or a mask drops some
      at inference.
  """
  config = system.config
  for i, name in enumerate(names):
    heads = training('heads', names[:i]) if system.model.exits else []
    changes = 'backbone' in PHASES[name].trains or PHASES[name].decides
    if (heads and changes and 'heads' not in PHASES[name].trains
        and not training('heads', names[i + 1:])):
      raise ValueError(
          f'config.phases={tuple(names)}: {name!r} changes the model after '
          f'{heads[-1]!r}{before} trained exits on it; put {name!r} first, or '
          f"add 'classifier_wise' after it")
    if ('backbone' in PHASES[name].trains and PHASES[name].exits
        and name in config.phases and decider(config, name) != 'all'):
      raise ValueError(
          f'config.phases={tuple(names)}: {name!r} trains the backbone with '
          f'all layers, but a {decider(config, name)} drops some of them at '
          f"inference; train exits with 'classifier_wise', or put {name!r} "
          f'first')
