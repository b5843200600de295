"""Trained models that the package brings, to try without training."""

from adavit_jax.trained.catalogue import names as names
from adavit_jax.trained.catalogue import path as path
from adavit_jax.trained.catalogue import pretrained as pretrained
