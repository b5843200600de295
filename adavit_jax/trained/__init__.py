"""Trained models that the package brings, to try without training."""

from adavit_jax.trained.catalog import names as names
from adavit_jax.trained.catalog import path as path
from adavit_jax.trained.catalog import pretrained as pretrained
