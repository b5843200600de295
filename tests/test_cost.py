"""Closed-form MACs against the program's own products, and by hand."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import masked
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


def _all_tokens(model, **options):
  """The plain model, whose encoders all compute all tokens."""
  def run(params, images):
    x = modes.embed(model, params, images).x
    x = masked.run(model, params, x, images, **options).x
    return modes.classify(model, params, x).total
  return run


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'deit_small_distilled_patch16_224',
    'vit_cifar_conv8_32', 'vit_digits_patch2_8'])
def test_macs_are_the_programs_own(name):
  model = models.create(name)
  spend = cost.of(model)
  actions = fixed.all_layers(plan.num_layers(model))
  params, images = _abstract(model)
  plain = lambda params, images: model.apply({'params': params}, images).total
  assert spend.dense == spend.adaptive(actions)
  assert _products(plain, params['backbone'], images) == spend.dense
  assert _products(_all_tokens(model), params, images) == spend.dense
  # All that is left out for inference is read by nobody.
  got = _products(lambda *args: modes.forward(model, *args), params, images)
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
  assert got == cost.of(model).adaptive(actions) - left_out
  rows = Actions(*(np.stack([a, np.zeros(8)]) for a in actions))
  np.testing.assert_array_equal(cost.left_out(model, rows), [left_out, 0])
  # A gate reads too.
  gates = Actions(*(a * np.linspace(.1, .9, 8) for a in actions))
  assert cost.left_out(model, gates) == left_out


def _left_out(model, actions):
  """By a loop over the encoders behind the policy."""
  n, p, d = model.num_tokens, model.num_prefix, model.width
  total = 0
  for i, (msa, mlp) in enumerate(zip(*actions)):
    if not any(actions.msa[i + 1:]):
      total += msa * (n - p) * (2 * d * d + 2 * n * d)
      total += mlp * (n - p) * 2 * d * model.mlp_dim
  return total


@pytest.mark.parametrize('num_fixed', [0, 1, 3])
def test_what_is_left_out_by_a_loop(num_fixed):
  model = tiny.model(distillation=True, num_fixed=num_fixed)
  num = 4 - num_fixed
  keep = np.random.default_rng(0).integers(0, 2, (2, 16, num))
  got = cost.left_out(model, Actions(*keep))
  want = [_left_out(model, Actions(*row)) for row in keep.swapaxes(0, 1)]
  np.testing.assert_array_equal(got, want)


def _flops(function, *args):
  return jax.jit(function).lower(*args).cost_analysis()['flops']


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', *(
        pytest.param(f'vit_{size}_patch16_224', marks=pytest.mark.nightly)
        for size in ('small', 'base'))])
def test_xla_counts_the_same_flops(name):
  """XLA counts LayerNorm, softmax and GELU too, a small share."""
  model = models.create(name)
  flops = _flops(_all_tokens(model, unroll=model.depth), *_abstract(model))
  np.testing.assert_allclose(flops / 2, cost.of(model).dense, rtol=0.02)


@pytest.mark.parametrize('kwargs', [
    dict(), dict(tokens='pooled'), dict(aux=False), dict(hidden=7),
    dict(head=True, hidden=7), dict(aux=False, head=True),
    dict(aux=False, hidden=7), dict(conv=5)])
@pytest.mark.parametrize('overrides', [
    dict(distillation=True), dict(num_fixed=0), dict(num_fixed=3)])
def test_policy_networks(kwargs, overrides):
  model = tiny.model(**overrides)
  nets = learned.PolicyNets(
      num_layers=plan.num_layers(model), num_classes=model.num_classes,
      at=plan.tokens_at(model, model.num_fixed), **kwargs)
  z1 = jnp.zeros((1, model.num_tokens, model.width))

  def build():
    key = jax.random.key(0)
    return {**models.init_params(model, key),
            **learned.init_params(nets, model, key)}

  def decide(params, z1):
    features = learned.observe(nets, model, params, z1)
    return learned.greedy(nets, params['policy'], features)

  spend = cost.of(model, nets)
  assert _products(decide, jax.eval_shape(build), z1) == spend.policy
  ones = fixed.all_layers(plan.num_layers(model))
  assert spend.adaptive(ones) == spend.dense + spend.policy
  assert spend.dense == cost.of(model).dense


def test_parts_of_a_model_by_hand():
  """depth 4, D 16, N 5, MLP 32 wide, K 4, one encoder fixed."""
  spend = cost.of(tiny.model())
  msa, mlp = 4 * 5 * 16 * 16 + 2 * 25 * 16, 2 * 5 * 16 * 32
  # 4 patches of 4 x 4 x 1 pixels to 16 numbers.
  stem, head = 4 * 16 * 16, 16 * 4
  assert spend == cost.Cost(
      always=stem + msa + mlp + head, encoders=msa + mlp, msa=(msa,) * 3,
      mlp=(mlp,) * 3, policy=0, stages=(stem + 4 * (msa + mlp) + head,),
      layer_stages=Actions((0, 0, 0), (0, 0, 0)))
  assert spend.dense == spend.stages[0]


def test_stems_by_hand():
  # 4 patches of 4 x 4 x 1 pixels to 16 numbers.
  assert tiny.model().embed_macs == 4 * 16 * 16
  # To 4 x 4 x 8 (from 1), to 2 x 2 x 16, then the projection.
  assert tiny.model(stem='conv').embed_macs == (
      16 * 9 * 1 * 8 + 4 * 9 * 8 * 16 + 4 * 16 * 16)
  assert (cost.of(tiny.model(stem='conv')).always
          - cost.of(tiny.model()).always) == (
              tiny.model(stem='conv').embed_macs - tiny.model().embed_macs)


def _by_hand():
  """3 MSA and 4 MLP layers, which cost different amounts, in 2 stages."""
  return cost.Cost(
      always=210, encoders=100, msa=(30, 40, 50), mlp=(20, 21, 22, 23),
      policy=5, stages=(200, 300),
      layer_stages=Actions((0, 1, 1), (0, 0, 1, 1)))


def test_parts_by_hand():
  spend = _by_hand()
  actions = Actions(np.array([[1, 0, 1], [0, 0, 0]]),
                    np.array([[1, 1, 0, 1], [0, 0, 0, 0]]))
  assert spend.dense == 210 + 120 + 86
  want = np.array([30 + 50 + 20 + 21 + 23 + 215, 215])
  np.testing.assert_array_equal(spend.adaptive(actions), want)
  np.testing.assert_allclose(spend.ratio(actions), want / 416)
  # The stem and the heads are the 110 that lie in no encoder.
  np.testing.assert_allclose(
      spend.encoder_ratio(actions), (want - 110) / (416 - 110))
  # NumPy stays NumPy, JAX traces.
  assert isinstance(spend.ratio(actions), np.ndarray)
  np.testing.assert_allclose(
      jax.jit(spend.ratio)(actions), want / 416, rtol=1e-6)


def test_stages_by_hand():
  spend = _by_hand()
  np.testing.assert_array_equal(spend.exits, [200, 500])
  assert spend.mean([3, 1]) == (3 * 200 + 1 * 500) / 4
  actions = Actions(np.array([[1, 0, 1], [0, 0, 0]]),
                    np.array([[1, 1, 0, 1], [0, 0, 0, 0]]))
  for dtype in (np.float32, np.int32, bool):
    rows = Actions(*(a.astype(dtype) for a in actions))
    np.testing.assert_array_equal(
        spend.stage(0, rows), [200, 200 - 30 - 20 - 21])
    np.testing.assert_array_equal(
        spend.stage(1, rows), [300 - 40 - 22, 300 - 90 - 45])
    np.testing.assert_array_equal(
        jax.jit(lambda rows: spend.stage(1, rows))(rows),
        [300 - 40 - 22, 300 - 90 - 45])
  assert spend.stage(0, None) == 200 and spend.stage(1, None) == 300


def test_all_layers_of_a_plain_model_cost_one():
  model = tiny.model()
  spend = cost.of(model)
  ones = fixed.all_layers(plan.num_layers(model))
  assert spend.ratio(ones) == 1 and spend.encoder_ratio(ones) == 1
