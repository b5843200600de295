"""What objects print: short, true, and never an error."""

import pickle
import re

import adavit_jax
from adavit_jax import cost
from adavit_jax import describe
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.vit import ViT
from adavit_jax.policies import fixed
from adavit_jax.runtime import cascade
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib
import flax
import jax
import jax.numpy as jnp
import numpy as np
import odd
import pytest
import tiny


def _parts(**changes):
  """A system and its initial state; nothing is compiled for the parameters."""
  config = tiny.get_config()
  config.update_from_flattened_dict(changes)
  system = system_lib.create(config, tiny.dataset())
  state = jax.eval_shape(lambda: state_lib.init_state(system, 0))
  zeros = lambda tree: jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), tree)
  return system, state.replace(params=zeros(state.params),
                               ema=zeros(state.ema))


@pytest.mark.parametrize('name', models.names())
def test_a_model_prints_what_creates_it_again(name):
  model = models.create(name, num_fixed=1)
  text, size = repr(model).split(': ')
  made = eval(text, {type(model).__name__: type(model)})
  assert made == model
  assert size.endswith(describe.macs(cost.of(model).dense))
  assert size.startswith(f'{plan.num_encoders(model)} encoders, ')


def test_a_model_in_full():
  assert repr(tiny.model(exits=((1, 'mlp'),), dtype='bfloat16')) == (
      "ViT(image_size=8, num_classes=4, channels=1, exits=((1, 'mlp'),), "
      'dtype=bfloat16, patch_size=4, width=16, depth=4, num_heads=2, '
      'mlp_ratio=2.0): 4 encoders, 5 tokens, 45.25 kMACs')
  assert repr(odd.model()).endswith(': 5 encoders, 4 to 8 tokens, 4.53 kMACs')
  # Attributes that do not fit, as in the message of an error.
  assert repr(ViT(image_size=8, num_classes=4, patch_size=0, width=16, depth=4,
                  num_heads=2)) == (
      'ViT(image_size=8, num_classes=4, patch_size=0, width=16, depth=4, '
      'num_heads=2)')


def test_a_bound_model_prints_alike_and_flax_still_names_it():
  seen = []

  class Watched(ViT):

    def setup(self):
      seen.append(repr(self))
      super().setup()
      seen.append(repr(self))

    def __call__(self, images):
      seen.append(repr(self))
      return super().__call__(images)

  model = Watched(image_size=8, num_classes=4, channels=1, patch_size=4,
                  width=16, depth=1, num_heads=2)
  images = jnp.zeros((1, 8, 8, 1))
  jax.eval_shape(model.init, jax.random.key(0), images)
  assert len(seen) > 2 and set(seen) == {repr(model)}
  with pytest.raises(flax.errors.ScopeCollectionNotFound, match='"cls"'):
    model.apply({'params': {}}, images)
  assert pickle.loads(pickle.dumps(tiny.model())) == tiny.model()


def test_cost():
  model = tiny.model(exits=((1, 'mlp'),))
  text = repr(cost.of(model))
  assert text == ('Cost(45.25 kMACs: always 0.268, 3 MSA layers 0.393, 3 MLP '
                  'layers 0.339, exits at 0.313, 1.047)')
  empty = cost.Cost(0, 0, (), (), 0, (0,), adavit_jax.Actions((), ()))
  assert repr(empty).startswith('Cost(0 MACs')
  assert empty == pickle.loads(pickle.dumps(empty)) != cost.of(model)


@pytest.mark.parametrize('macs, text', [
    (7, '7 MACs'), (45_248, '45.25 kMACs'), (317.5e6, '317.50 MMACs'),
    (1_253_683_200, '1.25 GMACs')])
def test_units(macs, text):
  assert describe.macs(macs) == text


def test_predictions():
  actions = adavit_jax.Actions(np.array([[1, 0, 1], [0, 0, 1]], np.float32),
                               np.ones((2, 3), np.float32))
  prediction = adavit_jax.Prediction(
      np.zeros((2, 4), np.float32), np.array([3, 0]), actions,
      np.array([2e6, 3e6]))
  assert repr(prediction) == (
      'Prediction(logits=float32[2,4], labels=[3, 0], actions=75% of 6 '
      'layers, macs=2.50 MMACs on average)')
  one = cascade.CascadePrediction(
      np.zeros(4, np.float32), np.int64(2), np.int64(1), np.float64(2e6))
  assert repr(one) == (
      'CascadePrediction(logits=float32[4], labels=2, exit=1, '
      'macs=2.00 MMACs)')
  many = prediction._replace(labels=np.arange(1000))
  assert 'labels=[0, 1, 2, ..., 997, 998, 999],' in repr(many)
  # Of a regression, and of no images.
  assert 'labels=[0.5],' in repr(one._replace(labels=np.array([0.5])))
  assert 'macs=float64[0]' in repr(prediction._replace(macs=np.zeros(0)))


def test_a_prediction_may_hold_anything():
  prediction = adavit_jax.Prediction(
      *[np.zeros((2, 3), np.float32)] * 2,
      adavit_jax.Actions(*np.zeros((2, 2, 3))), np.zeros(2))
  seen = []
  jax.eval_shape(lambda x: seen.append(repr(x)), prediction)
  assert 'labels=float32[2,3]' in seen[0] and 'Tracer' not in seen[0]
  nothing = jax.tree.map(lambda _: None, prediction)
  assert 'actions=(None, None), macs=None' in repr(nothing)


def test_classifiers():
  system, state = _parts()
  clf = adavit_jax.Classifier(system, state, max_batch_size=8)
  assert re.fullmatch(r"""Classifier of vit_digits_patch2_8, [\d,]+ parameters
  images: uint8 \[B, 8, 8, 1\] to 4 classes, at most 8 at once
  layers: a policy decides, threshold=0.5; cond for one image, compact for more
  Cost\(45.25 kMACs: .*, policy 0.021\)""", repr(clf))
  clf = adavit_jax.Classifier(
      system, state, actions=fixed.all_layers((3, 3)))
  assert '6 of 6 that may be dropped, of every image; static' in repr(clf)
  assert 'policy' not in repr(clf)


def test_a_cascade():
  system, state = _parts(**{
      'phases': ('exits',), 'model.exits': ((1, 'mlp'),)})
  clf = adavit_jax.CascadeClassifier(
      system, state, 'exits', thresholds=-0.5, max_batch_size=4)
  assert re.fullmatch(r"""CascadeClassifier of vit_digits_patch2_8, .*
  images: uint8 \[B, 8, 8, 1\] to 4 classes, at most 4 at once
  layers: all; phase exits
  exits: 2, thresholds \[-0.5\] for entropy
  Cost\(.*, exits at 0.313, 1.047\)""", repr(clf))
