"""Augmentation against NumPy references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adavit_jax import data
from adavit_jax.data import augment as _  # pylint: disable=unused-import
