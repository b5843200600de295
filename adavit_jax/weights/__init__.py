"""Weight files: our own format, timm, Hugging Face and AugReg."""

from adavit_jax.weights.convert import init_params as init_params
from adavit_jax.weights.convert import load as load
from adavit_jax.weights.families import register as register
from adavit_jax.weights.files import Checkpoint as Checkpoint
from adavit_jax.weights.files import read as read
from adavit_jax.weights.images import Preprocessing as Preprocessing
from adavit_jax.weights.images import preprocessing as preprocessing
from adavit_jax.weights.save import save as save
