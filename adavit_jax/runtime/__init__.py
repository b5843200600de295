"""How a decision becomes saved time: the execution modes."""

from adavit_jax.runtime.modes import forward as forward
from adavit_jax.runtime.stages import exit_logits as exit_logits
