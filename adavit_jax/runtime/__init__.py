"""Execution modes and the cascade: turn dropped layers into saved time."""

from adavit_jax.runtime.cascade import CascadePrediction as CascadePrediction
from adavit_jax.runtime.modes import forward as forward
from adavit_jax.runtime.stages import exit_logits as exit_logits
from adavit_jax.runtime.token_features import features as features
