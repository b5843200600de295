"""A ViT with exits: its stages and their cost."""

import json

from adavit_jax import cost
from adavit_jax import exit_cost
from adavit_jax import models
from adavit_jax.models import exit_heads
from adavit_jax.models import stages as stages_lib
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import exit_stages
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import products
import tiny

# One exit among the fixed encoders, two after the last of them.
PLAIN = ((1, 'mlp'), (2, 'cnn_add'), (2, 'vit'), (4, 'resmlp'))
# For a policy: one right behind it, two after one encoder.
STEERED = ((1, 'mlp'), (3, 'resmlp'), (3, 'mlp'))
N = 24


def _by_hand(model, params, images, keep):
  """Encoder by encoder: (tokens [depth + 1, B, N, D], logits [E, B, K]).

  Adaptive branches are scaled by `keep` [B, 2L].
  """
  vit, p = model.vit, params['vit']
  gates = jnp.split(keep[..., None, None], 2, axis=1)
  ones = jnp.ones((len(images), vit.num_fixed, 1, 1))
  keep_msa, keep_mlp = (jnp.concatenate([ones, g], 1) for g in gates)
  x = vit.apply({'params': p}, images, method='embed')
  tokens = [x]
  for i in range(vit.depth):
    group, row = (('fixed', i) if i < vit.num_fixed else
                  ('adaptive', i - vit.num_fixed))
    own = {'params': jax.tree.map(lambda leaf: leaf[row], p[group])}
    x = x + keep_msa[:, i] * vit.encoder.apply(own, x, method='msa')
    x = x + keep_mlp[:, i] * vit.encoder.apply(own, x, method='mlp')
    tokens.append(x)
  logits = []
  for i, (layer, name) in enumerate(model.exits):
    head = exit_heads.create(name, vit, vit.num_classes)
    logits.append(head.apply(
        {'params': params['heads'][f'exit_{i}']}, tokens[layer]))
  last = vit.apply({'params': p}, x[:, :vit.num_prefix], method='classify')
  return jnp.stack(tokens), jnp.stack([*logits, last.total])


def _close(got, want):
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.normal(size=(N, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope='module')
def model():
  return tiny.model(depth=5, num_fixed=2, distillation=True, exits=PLAIN)


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


def test_stages_are_the_encoders_one_by_one(model, params, images):
  def run(params, images):
    keep = jnp.ones((len(images), 2 * model.vit.num_adaptive))
    carry, found = None, []
    # More than the encoders of any stage.
    for stage in stages_lib.stages(model, unroll=4, remat=True):
      carry, y = stage(params, images, carry)
      found.append((carry, y))
    tokens, logits = map(jnp.stack, zip(*found))
    plain = model.vit.apply({'params': params['vit']}, images)
    inference = jnp.stack([
        stages_lib.exit_logits(model, params, images, inference=True),
        model.apply({'params': params}, images, inference=True)])
    return (tokens, logits, inference, plain.total,
            *_by_hand(model, params, images, keep))

  tokens, logits, inference, plain, want_tokens, want = jax.jit(run)(
      params, images[:4])
  assert logits.shape == (5, 4, 4) and logits.dtype == jnp.float32
  _close(logits, want)
  _close(inference, jnp.stack([want] * 2))
  _close(logits[-1], plain)
  _close(tokens, want_tokens[np.array([1, 2, 2, 4, 5])])
  # Exits that are alike would hide one in another's place.
  gaps = np.abs(want[:, None] - want).max((2, 3)) + np.eye(5)
  assert gaps.min() > 0.1


@pytest.mark.parametrize('start', range(6))
def test_no_encoders_leave_the_tokens_that_are_read(model, params, start):
  x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
  got = model.vit.apply(
      {'params': params['vit']}, x, start, start, read=2, method='encode')
  np.testing.assert_array_equal(got, x[:, :2])


def test_parameters_are_those_of_the_vit_and_of_the_heads(model, params):
  assert set(params) == {'vit', 'heads'}
  plain = tiny.params(model.vit)
  shapes = lambda tree: jax.tree.map(np.shape, tree)
  assert shapes(params['vit']) == shapes(plain)
  assert set(params['heads']) == {f'exit_{i}' for i in range(4)}
  assert model.num_stages == 5 and model.num_classes == 4
  assert [model.span(i) for i in range(5)] == [
      (0, 1), (1, 2), (2, 2), (2, 4), (4, 5)]


def test_exits_of_a_config_file():
  exits = json.loads(json.dumps(PLAIN))
  assert exits[0] == [1, 'mlp']
  again = tiny.model(depth=5, exits=exits)
  assert again == tiny.model(depth=5, exits=PLAIN)
  assert hash(again) == hash(tiny.model(depth=5, exits=PLAIN))
  assert isinstance(tiny.model(exits=()), models.ViT)


@pytest.mark.parametrize('exits, message', [
    (((0, 'mlp'),), r"\(\(0, 'mlp'\),\): layers must be 1 to 3"),
    (((1, 'mlp'), (4, 'mlp')), 'layers must be 1 to 3, since 4 encoders'),
    (((3, 'mlp'), (1, 'mlp')), 'must not fall'),
    (((1, 'mpl'),), r"\(1, 'mpl'\) must be \(layer, head\), .*'mlp_mixer'"),
    (((1, 'mlp', 2),), r"\(1, 'mlp', 2\) must be \(layer, head\)"),
    ((1, 'mlp'), r': 1 must be \(layer, head\)'),
    (('mlp',), r": 'mlp' must be \(layer, head\)"),
    ((('mlp', 1),), r"\('mlp', 1\) must be \(layer, head\)"),
    (((1.5, 'mlp'),), r"\(1.5, 'mlp'\) must be"),
    (({'layer': 1},), r"{'layer': 1} must be")])
def test_exits_that_do_not_fit(exits, message):
  with pytest.raises(ValueError, match=message):
    tiny.model(exits=exits)


def test_a_ravit_has_branches_instead():
  with pytest.raises(ValueError, match="unknown model attribute 'exits'"):
    models.create('ravit_cifar_patch4_32', exits=((1, 'mlp'),))


def test_images_of_another_size(model, params):
  stage = stages_lib.stages(model)[0]
  with pytest.raises(ValueError, match=r'the model takes \[B, 8, 8, 1\]'):
    stage(params, np.zeros((1, 9, 9, 1), np.float32), None)


def _nets(model):
  return learned.PolicyNets(
      num_layers=model.vit.num_adaptive, num_classes=model.num_classes,
      num_candidates=9, head=True, hidden=7)


def _count(model, stages, params):
  """MACs of each stage's program."""
  s, found, carry = model.image_size, [], None
  images = jax.ShapeDtypeStruct((1, s, s, model.channels), jnp.float32)
  for stage in stages:
    program, (carry, _) = jax.make_jaxpr(stage, return_shape=True)(
        params, images, carry)
    found.append(products.macs(program.jaxpr))
  return tuple(found)


@pytest.mark.parametrize('name, overrides', [
    ('vit_digits_patch2_8', dict(exits=PLAIN, distillation=True)),
    # A grid of 7 x 7 patches: the heads pool an odd row with itself.
    ('vit_small_patch32_224',
     dict(exits=[(6, head) for head in exit_heads.HEADS])),
    ('vit_cifar_conv8_32', dict(exits=((1, 'mlp'), (3, 'cnn_project'))))])
def test_macs_are_the_programs_own(name, overrides):
  model = models.create(name, **overrides)
  params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  spend = exit_cost.multi_exit(model)
  assert _count(model, stages_lib.stages(model), params) == spend.stages
  every = fixed.all_layers(model.vit.num_adaptive)
  *early, last = _count(
      model, stages_lib.stages(model, inference=True), params)
  assert early == list(spend.stages[:-1])
  assert last == spend.stages[-1] - cost.left_out(model.vit, every)


def test_macs_with_a_policy_are_the_programs_own():
  model = tiny.model(exits=STEERED)
  nets = _nets(model)
  vit = model.vit

  def build():
    policy, stats = learned.init_params(nets, vit, jax.random.key(0))
    return {**models.init_params(model, jax.random.key(0)),
            'policy': policy, 'stats': stats}

  def decide(params, z1):
    features = learned.observe(nets, vit, params, z1, params['stats'])
    return learned.greedy(nets, params['policy'], features)

  stages = exit_stages.stages(model, decide, 'masked')
  spend = exit_cost.multi_exit(model, nets)
  assert _count(model, stages, jax.eval_shape(build)) == spend.stages
  plain = exit_cost.multi_exit(model).stages
  extra = np.subtract(spend.stages, plain)
  np.testing.assert_array_equal(extra, [cost.vit(vit, nets).policy, 0, 0, 0])
