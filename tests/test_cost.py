"""Closed-form MACs against the program's own products, and by hand."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
import jax
import jax.numpy as jnp
import numpy as np
import products
import pytest
import tiny


def _abstract(model):
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  s = model.image_size
  return params, jax.ShapeDtypeStruct((1, s, s, model.channels), jnp.float32)


def _products(function, *args):
  return products.macs(jax.make_jaxpr(function)(*args).jaxpr)


def _plain(model, **options):
  return lambda params, images: model.apply(
      {'params': params}, images, **options).total


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'deit_small_distilled_patch16_224',
    'vit_cifar_conv8_32', 'vit_digits_patch2_8'])
def test_macs_are_the_programs_own(name):
  model = models.create(name)
  spend = cost.vit(model)
  actions = fixed.all_layers(model.num_adaptive)
  got = _products(_plain(model), *_abstract(model))
  assert got == spend.dense == spend.adaptive(actions)
  # All that is left out for inference is read by nobody.
  got = _products(_plain(model, inference=True), *_abstract(model))
  assert got == spend.dense - cost.left_out(model, actions)


# Where the last MSA layer lies, in front of MLP layers; no MSA layer at all.
@pytest.mark.parametrize('msa, mlp', [
    ('01101101', '10110011'), ('01101110', '10110011'),
    ('01110000', '10110010'), ('00000000', '10110010'),
    ('00000000', '00000000')])
def test_macs_under_actions_are_the_programs_own(msa, mlp):
  """`static` runs what is kept, of the tokens that are read later."""
  model = models.create('vit_cifar_patch4_32', num_fixed=1)
  actions = Actions(*(np.array(list(a), np.float32) for a in (msa, mlp)))
  got = _products(lambda params, images: modes.forward(
      model, params, images, actions, mode='static').total, *_abstract(model))
  left_out = cost.left_out(model, actions)
  assert got == cost.vit(model).adaptive(actions) - left_out
  rows = Actions(*(np.stack([a, np.zeros(8)]) for a in actions))
  np.testing.assert_array_equal(cost.left_out(model, rows), [left_out, 0])


def _flops(function, *args):
  return jax.jit(function).lower(*args).cost_analysis()['flops']


@pytest.mark.parametrize('name', [
    f'vit_{size}_patch16_224' for size in ('tiny', 'small', 'base')])
def test_xla_counts_the_same_flops(name):
  """XLA counts LayerNorm, softmax and GELU too, a small share."""
  model = models.create(name)
  flops = _flops(_plain(model, unroll=model.depth), *_abstract(model))
  np.testing.assert_allclose(flops / 2, cost.vit(model).dense, rtol=0.02)


@pytest.mark.parametrize('kwargs', [
    dict(), dict(tokens='pooled'), dict(aux=False), dict(hidden=7),
    dict(head=True, hidden=7), dict(aux=False, head=True),
    dict(aux=False, hidden=7)])
def test_policy_networks(kwargs):
  model = tiny.model(distillation=True)
  nets = learned.PolicyNets(
      num_layers=model.num_adaptive, num_classes=model.num_classes,
      num_candidates=9, **kwargs)
  z1 = jnp.zeros((1, model.num_tokens, model.width))
  policy, stats = jax.eval_shape(
      lambda key: learned.init_params(nets, model, key), jax.random.key(0))
  vit = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  params = {'vit': vit, 'policy': policy, 'stats': stats}

  def decide(params, z1):
    features = learned.observe(nets, model, params, z1, params['stats'])
    return learned.greedy(nets, params['policy'], features)

  spend = cost.vit(model, nets)
  assert _products(decide, params, z1) == spend.policy
  ones = fixed.all_layers(model.num_adaptive)
  assert spend.adaptive(ones) == spend.dense + spend.policy
  assert spend.dense == cost.vit(model).dense


def test_stems_by_hand():
  # 4 patches of 4 x 4 x 1 pixels to 16 numbers.
  assert cost.vit(tiny.model()).stem == 4 * 16 * 16
  # To 4 x 4 x 8 (from 1), to 2 x 2 x 16, then the projection.
  assert cost.vit(tiny.model(stem='conv')).stem == (
      16 * 9 * 1 * 8 + 4 * 9 * 8 * 16 + 4 * 16 * 16)


def test_parts_by_hand():
  spend = cost.Cost(stem=100, msa=30, mlp=20, head=10, policy=5, num_fixed=2,
                    num_adaptive=4)
  actions = Actions(np.array([[1, 0, 1, 0], [0, 0, 0, 0]]),
                    np.array([[1, 1, 1, 0], [0, 0, 0, 0]]))
  assert spend.dense == 100 + 6 * 50 + 10
  rest = 100 + 2 * 50 + 10 + 5
  want = np.array([2 * 30 + 3 * 20 + rest, rest])
  np.testing.assert_array_equal(spend.adaptive(actions), want)
  np.testing.assert_allclose(spend.ratio(actions), want / 410)
  np.testing.assert_allclose(
      spend.encoder_ratio(actions), (want - 110) / 300)
  # NumPy stays NumPy, JAX traces.
  assert isinstance(spend.ratio(actions), np.ndarray)
  np.testing.assert_allclose(
      jax.jit(spend.ratio)(actions), want / 410, rtol=1e-6)


def test_all_layers_of_a_plain_model_cost_one():
  model = tiny.model()
  spend = cost.vit(model)
  ones = fixed.all_layers(model.num_adaptive)
  assert spend.ratio(ones) == 1 and spend.encoder_ratio(ones) == 1
