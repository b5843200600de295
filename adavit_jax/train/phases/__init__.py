"""Training is a list of phases; each names its loss and what it trains."""

from adavit_jax.train.phases import dense
from adavit_jax.train.phases import exits
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import policy
from adavit_jax.train.phases import static
from adavit_jax.train.phases import warm_start

MODULES = {'dense': dense, 'warm_start': warm_start, 'policy': policy,
           'joint': joint, 'static': static, 'exits': exits}
# Phases of models that can stop early; the others are for a `ViT`.
STAGED = ('exits',)


def check(names, model, model_name):
  """Raises a ValueError for phases that do not train this kind of model.

  Args:
    names: of the phases.
    model: from `models.create`.
    model_name: as the config gives it.
  """
  staged = hasattr(model, 'num_stages')
  for name in names:
    if (name in STAGED) != staged:
      fits = [n for n in MODULES if (n in STAGED) == staged]
      kind = 'has exits' if staged else 'has no exits'
      raise ValueError(
          f'phase {name!r} does not train {model_name!r}, which {kind}; set '
          f'config.phases to some of {fits}, or another config.model.name')
