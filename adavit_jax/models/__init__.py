"""Backbones, exit heads, parameters and the model registry."""

from adavit_jax.models.actions import Actions as Actions
from adavit_jax.models.backbone import Backbone as Backbone
from adavit_jax.models.backbone import Logits as Logits
from adavit_jax.models.backbone_check import check_backbone as check_backbone
from adavit_jax.models.inputs import as_pixels as as_pixels
from adavit_jax.models.params import fold as fold
from adavit_jax.models.params import init_params as init_params
from adavit_jax.models.registry import create as create
from adavit_jax.models.registry import names as names
from adavit_jax.models.registry import register as register
