"""Loads a trained run as a Python function, or writes it to a file."""

from adavit_jax.inference.cascade_classifier import (
    CascadeClassifier as CascadeClassifier,
)
from adavit_jax.inference.classifier import Classifier as Classifier
from adavit_jax.inference.classifier import Prediction as Prediction
from adavit_jax.inference.loading import load as load
from adavit_jax.inference.safe_thresholds import calibrate as calibrate
from adavit_jax.inference.saving import save as save
from adavit_jax.inference.watching import Watch as Watch
from adavit_jax.inference.watching import watch as watch
