"""What is computed: the transformer, its stems, and the registry of names."""

from adavit_jax.models.actions import Actions as Actions
from adavit_jax.models.multi_exit import MultiExit as MultiExit
from adavit_jax.models.registry import create as create
from adavit_jax.models.registry import names as names
from adavit_jax.models.vit import Logits as Logits
from adavit_jax.models.vit import ViT as ViT
from adavit_jax.models.vit import as_pixels as as_pixels
from adavit_jax.models.vit import init_params as init_params
