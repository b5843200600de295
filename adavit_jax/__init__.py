"""Vision transformers that adapt their compute to each image."""

from adavit_jax.inference import CascadeClassifier as CascadeClassifier
from adavit_jax.inference import Classifier as Classifier
from adavit_jax.inference import Prediction as Prediction
from adavit_jax.inference import calibrate as calibrate
from adavit_jax.inference import load as load
from adavit_jax.inference import save as save
from adavit_jax.inference import watch as watch
from adavit_jax.models import Actions as Actions
from adavit_jax.models import create as create
from adavit_jax.models import names as names
from adavit_jax.policies.fixed import Stochastic as Stochastic
from adavit_jax.runtime import CascadePrediction as CascadePrediction
from adavit_jax.runtime import exit_logits as exit_logits
from adavit_jax.runtime import features as features
from adavit_jax.runtime import forward as forward
from adavit_jax.trained import pretrained as pretrained
from adavit_jax.weights import init_params as init_params
