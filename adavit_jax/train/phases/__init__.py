"""Training is a list of phases; each names its loss and what it trains."""

from adavit_jax.models import MultiExit
from adavit_jax.train.phases import classifier_wise
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import exits
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import last_exit
from adavit_jax.train.phases import layer_wise
from adavit_jax.train.phases import policy
from adavit_jax.train.phases import static
from adavit_jax.train.phases import warm_start

MODULES = {'dense': dense, 'warm_start': warm_start, 'policy': policy,
           'joint': joint, 'static': static, 'exits': exits,
           'last_exit': last_exit, 'classifier_wise': classifier_wise,
           'layer_wise': layer_wise}
# Phases of models that can stop early; the others are for a `ViT`.
STAGED = ('exits', 'last_exit', 'classifier_wise', 'layer_wise')
# Of them, those that any such model can have.
_ANY_STAGED = ('exits',)


def check(config, model):
  """Raises a ValueError for phases that do not train this kind of model.

  Args:
    config: see `train.config.default_config`.
    model: from `models.create`.
  """
  names, model_name = list(config.phases), config.model.name
  if isinstance(model, MultiExit):
    fits, kind = STAGED, 'has exit heads'
  elif hasattr(model, 'num_stages'):
    fits, kind = _ANY_STAGED, 'has branches'
  else:
    fits = tuple(n for n in MODULES if n not in STAGED)
    kind = 'has no exits'
  for name in names:
    if name not in fits:
      raise ValueError(
          f'phase {name!r} does not train {model_name!r}, which {kind}; set '
          f'config.phases to some of {list(fits)}, or another model')
  weights = tuple(config.exits.weights)
  if fits != _ANY_STAGED and 'exits' not in names and weights != (1.,):
    raise ValueError(f"exits.weights={weights} is for the phase 'exits' and "
                     f'not for {tuple(names)}; leave it out')
  heads = _heads(names)
  if heads and 'last_exit' in names[names.index(heads[0]):]:
    raise ValueError(f"config.phases={tuple(names)}: 'last_exit' would change "
                     f'the backbone under heads that {heads[0]!r} trained; put '
                     f'it first')
  if 'layer_wise' in names and config.layer_wise.steps < model.num_stages:
    raise ValueError(f'layer_wise.steps={config.layer_wise.steps} must be at '
                     f'least {model.num_stages}, the number of exits')


def check_heads(config, saved):
  """Checks that no heads of another run stay on a backbone that changes.

  Args:
    config: see `train.config.default_config`.
    saved: that of the run that it begins from, a dict.

  Raises:
    ValueError: if the last exit is trained under heads that the other run
      trained, and they are not trained after it.
  """
  names = list(config.phases)
  exits = [tuple(map(tuple, model.get('exits') or ()))
           for model in (config.model, saved['model'])]
  if ('last_exit' in names and exits[0] == exits[1] and _heads(saved['phases'])
      and not _heads(names[names.index('last_exit'):])):
    raise ValueError(f"config.phases={tuple(names)}: 'last_exit' would change "
                     f'the backbone under heads that {config.init.workdir} '
                     f"trained; add 'classifier_wise' behind it")


def _heads(names):
  return [n for n in names if 'heads' in MODULES[n].TRAINS]


def rounds(phase, system):
  """Parts of a phase, each with an optimizer and a schedule of its own."""
  return layer_wise.rounds(system) if phase == 'layer_wise' else 1
