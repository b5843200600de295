"""Tokens inside a model."""

import adavit_jax
from adavit_jax.models import plan
import efficient
import jax
import numpy as np
import pytest
import tiny

IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)


def test_they_are_those_of_a_loop_over_the_encoders():
  model = tiny.model(distillation=True, num_fixed=2)
  params = tiny.params(model)

  @jax.jit
  def loop(params, images):
    p = params['backbone']
    x = model.apply({'params': p}, images, method='tokenize')
    seen = [x]
    for i in range(4):
      own = {'params': jax.tree.map(lambda leaf: leaf[i], p['encoders'])}
      x = x + model.encoder.apply(own, x, method='msa')
      x = x + model.encoder.apply(own, x, method='mlp')
      seen.append(x)
    return seen

  want = loop(params, IMAGES)
  get = jax.jit(adavit_jax.features, static_argnums=(0, 3))
  got = get(model, params, IMAGES, (3, 0, 4, 1))
  for layer, tokens in zip((3, 0, 4, 1), got):
    np.testing.assert_allclose(tokens, want[layer], rtol=1e-5, atol=1e-5)
  alone, = get(model, params, IMAGES, None)
  np.testing.assert_array_equal(alone, got[2])


@pytest.mark.parametrize('name', ['levit', 'crossvit', *(
    pytest.param(name, marks=pytest.mark.nightly)
    for name in ('vil', 'evo', 'shuffle'))])
def test_tokens_of_a_backbone_are_as_it_describes_them(name):
  model = getattr(efficient, name)()
  places = range(plan.num_encoders(model) + 1)
  params = jax.eval_shape(
      lambda: adavit_jax.init_params(model, jax.random.key(0)))
  shape = 3, *[model.image_size] * 2, model.channels
  got = jax.eval_shape(
      lambda p, x: adavit_jax.features(model, p, x, places), params,
      jax.ShapeDtypeStruct(shape, np.float32))
  at = [plan.tokens_at(model, place) for place in places]
  assert [x.shape for x in got] == [(3, a.num, a.width) for a in at]


def test_layers_that_the_model_lacks():
  model = tiny.model()
  for layers in ((5,), (1, -1), (1.5,)):
    with pytest.raises(ValueError, match='^layers=.* 4$'):
      adavit_jax.features(model, {}, IMAGES, layers)
  with pytest.raises(ValueError, match='^layers=4 '):
    adavit_jax.features(model, {}, IMAGES, 4)
