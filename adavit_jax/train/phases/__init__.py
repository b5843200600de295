"""Training is a list of phases; each names its loss and what it trains."""

from adavit_jax.train.phases import dense
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import policy
from adavit_jax.train.phases import static
from adavit_jax.train.phases import warm_start

MODULES = {'dense': dense, 'warm_start': warm_start, 'policy': policy,
           'joint': joint, 'static': static}
