"""How a decision becomes saved time: the execution modes."""

from adavit_jax.runtime.modes import forward as forward
