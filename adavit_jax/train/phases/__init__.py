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


def check(names, model, model_name):
  """Raises a ValueError for phases that do not train this kind of model.

  Args:
    names: of the phases.
    model: from `models.create`.
    model_name: as the config gives it.
  """
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


def rounds(phase, system):
  """Parts of a phase, each with an optimizer and a schedule of its own."""
  return layer_wise.rounds(system) if phase == 'layer_wise' else 1
