"""Exits added to a backbone: its stages and their cost."""

import json

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import exit_heads
from adavit_jax.models import plan
from adavit_jax.models import vit
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import skipping
from adavit_jax.runtime import stages as stages_lib
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

  Of a ViT, whose branches behind the policy are scaled by `keep` [B, 2L].
  """
  p = params['backbone']
  gates = jnp.split(keep[..., None, None], 2, axis=1)
  ones = jnp.ones((len(images), model.num_fixed, 1, 1))
  keep_msa, keep_mlp = (jnp.concatenate([ones, g], 1) for g in gates)
  x, _ = model.embed(p, images, EVAL)
  tokens = [x]
  for i in range(model.depth):
    x = _encoder(model, p['encoders'], i, x, keep_msa[:, i], keep_mlp[:, i])
    tokens.append(x)
  logits = _added(model, params, tokens)
  last = model.classify(p, x[:, :model.num_prefix], 0, EVAL)[0]
  return jnp.stack(tokens), jnp.stack([*logits, last.total])


def _encoder(model, group, row, x, msa=1, mlp=1):
  own = {'params': jax.tree.map(lambda leaf: leaf[row], group)}
  x = x + msa * model.encoder.apply(own, x, method='msa')
  return x + mlp * model.encoder.apply(own, x, method='mlp')


def _added(model, params, tokens):
  """Logits of the added exits, from the tokens at every place."""
  logits = []
  for i, (place, name) in enumerate(model.exits):
    head = exit_heads.create(
        name, plan.tokens_at(model, place), model.num_classes)
    logits.append(head.apply(
        {'params': params['heads'][f'exit_{i}']}, tokens[place]))
  return logits


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


def _run(stages, params, images):
  """[(carry, logits)] of all stages."""
  carry, found = None, []
  for stage in stages:
    carry, y = stage(params, images, carry)
    found.append((carry, y))
  return found


def _apart(logits):
  """By how much exits differ; those that are alike would hide one another."""
  gaps = np.abs(logits[:, None] - logits).max((2, 3))
  return (gaps + np.eye(len(logits))).min()


def test_stages_are_the_encoders_one_by_one(model, params, images):
  def run(params, images):
    keep = jnp.ones((len(images), sum(plan.num_layers(model))))
    # More than the encoders of any stage.
    found = _run(stages_lib.stages(
        model, inference=False, unroll=4, remat=True), params, images)
    tokens, logits = map(jnp.stack, zip(*found))
    trained, stats = stages_lib.training(model, params, images, EVAL)
    assert stats is None
    plain = model.apply({'params': params['backbone']}, images)
    inference = stages_lib.exit_logits(model, params, images)
    last = modes.forward(model, params, images)
    return (tokens, logits, jnp.stack([inference, jnp.stack(trained)]),
            jnp.stack([plain.total, last.total]),
            *_by_hand(model, params, images, keep))

  tokens, logits, others, plain, want_tokens, want = jax.jit(run)(
      params, images[:4])
  assert logits.shape == (5, 4, 4) and logits.dtype == jnp.float32
  _close(logits, want)
  _close(others, jnp.stack([want] * 2))
  _close(plain, jnp.stack([want[-1]] * 2))
  _close(tokens, want_tokens[np.array([1, 2, 2, 4, 5])])
  assert _apart(want) > 0.1


def test_the_last_carry_has_the_tokens_that_are_read(model, params, images):
  shapes = jax.eval_shape(
      lambda *args: _run(stages_lib.stages(model), *args), params, images)
  assert [carry.shape for carry, _ in shapes] == (
      [(N, 6, 16)] * 4 + [(N, 2, 16)])


@pytest.mark.parametrize('start', range(6))
def test_no_encoders_leave_the_tokens_that_are_read(model, params, start):
  x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
  kwargs = dict(start=start, stop=start, read=2)
  got = masked.run(model, params, x, **kwargs).x
  np.testing.assert_array_equal(got[:, :2], x[:, :2])
  if start >= model.num_fixed:
    none = plan.cut(model, fixed.all_layers(plan.num_layers(model)), start,
                    start)
    for mode in ('static', 'cond', 'compact'):
      got = skipping.run(model, params, x, None, none, mode, **kwargs)
      np.testing.assert_array_equal(got[:, :2], x[:, :2])


def test_parameters_are_those_of_the_backbone_and_of_the_heads(model, params):
  assert set(params) == {'backbone', 'heads'}
  plain = tiny.params(model.clone(exits=()))
  shapes = lambda tree: jax.tree.map(np.shape, tree)
  assert set(plain) == {'backbone'}
  assert shapes(params['backbone']) == shapes(plain['backbone'])
  assert set(params['heads']) == {f'exit_{i}' for i in range(4)}
  assert len(plan.exits(model)) == 5 and model.num_classes == 4
  assert plan.spans(model) == [(0, 1), (1, 2), (2, 2), (2, 4), (4, 5)]


def test_heads_start_apart():
  """Each from a key of its own."""
  model = tiny.model(exits=((1, 'mlp'), (1, 'mlp')))
  heads = jax.jit(lambda key: models.init_params(model, key))(
      jax.random.key(0))['heads']
  first, second = (heads[f'exit_{i}']['mlp']['fc1']['kernel'] for i in (0, 1))
  assert np.abs(first - second).max() > 0.01


def test_exits_of_a_config_file():
  exits = json.loads(json.dumps(PLAIN))
  assert exits[0] == [1, 'mlp']
  again = tiny.model(depth=5, exits=exits)
  assert again == tiny.model(depth=5, exits=PLAIN)
  assert hash(again) == hash(tiny.model(depth=5, exits=PLAIN))
  assert tiny.model(exits=[]) == tiny.model()


@pytest.mark.parametrize('exits', [
    ((0, 'mlp'),), ((1, 'mlp'), (4, 'mlp')), ((3, 'mlp'), (1, 'mlp')),
    ((1, 'mpl'),), ((1, 'mlp', 2),), (1, 'mlp'), ('mlp',), (('mlp', 1),),
    ((1.5, 'mlp'),), ((True, 'mlp'),), ({'place': 1},), 'mlp', 3])
@pytest.mark.parametrize('name', ['vit', 'ravit'])
def test_exits_that_do_not_fit(name, exits):
  make = tiny.model if name == 'vit' else _ravit
  make(exits=((1, 'mlp'), (3, 'mlp')))
  with pytest.raises(ValueError, match='^exits='):
    make(exits=exits)


class _NoRaster(vit.ViT):
  """A ViT whose tokens lie in no order that a convolution could use."""

  @property
  def at(self):
    return super().at._replace(grid=None)


@pytest.mark.parametrize('name', exit_heads.HEADS)
def test_heads_that_convolve_need_a_raster(name):
  plain = tiny.model(exits=((1, name),))
  model = _NoRaster(**{
      key: getattr(plain, key) for key in plain.__dataclass_fields__
      if key not in ('parent', 'name')})
  if name.startswith('cnn'):
    with pytest.raises(ValueError, match=f"exit head '{name}'"):
      plan.check(model)
  else:
    plan.check(model)
    shapes = jax.eval_shape(lambda: models.init_params(
        model, jax.random.key(0)))
    assert set(shapes['heads']) == {'exit_0'}


# Inside a branch, and at its end beside the branch's own exit.
BRANCHES = ((1, 'mlp'), (2, 'cnn_add'), (2, 'vit'), (3, 'resmlp'))


def _ravit(**overrides):
  return models.create('ravit_cifar_patch4_32', **{
      **dict(image_size=16, channels=1, width=8, num_heads=2, mlp_ratio=2.,
             num_classes=3, layers=(2, 2)), **overrides})


def _ravit_by_hand(model, params, images, keep=None):
  """Logits [E, B, K] of 2 + 2 encoders with `BRANCHES`; keep [2, B, 4]."""
  p, tokens, own = params['backbone'], [None], []
  keep = jnp.ones((2, len(images), 4)) if keep is None else keep
  answer = lambda x, i: model.apply({'params': p}, x, i, method='answer').total
  x, _ = model.embed(p, images, EVAL)
  for i in range(4):
    if i == 2:
      own.append(answer(x, 0))
      x = model.apply({'params': p}, images, x[:, :1], 1, method='tokenize')
    x = _encoder(model, p[f'encoders_{i // 2}'], i % 2, x,
                 *keep[:, :, i, None, None])
    tokens.append(x)
  own.append(answer(x, 1))
  added = _added(model, params, tokens)
  return jnp.stack([*added[:3], own[0], added[3], own[1]])


@pytest.mark.nightly
def test_a_ravit_has_added_exits_beside_its_own():
  model = _ravit(exits=BRANCHES)
  params = tiny.params(model)
  assert [(e.place, e.head, e.index) for e in plan.exits(model)] == [
      (1, 'mlp', 0), (2, 'cnn_add', 1), (2, 'vit', 2), (2, '', 0),
      (3, 'resmlp', 3), (4, '', 1)]
  images = np.random.default_rng(0).normal(
      size=(3, 16, 16, 1)).astype(np.float32)

  @jax.jit
  def run(params, images):
    staged = [
        jnp.stack([y for _, y in _run(
            stages_lib.stages(model, **kwargs), params, images)])
        for kwargs in (dict(), dict(inference=False, unroll=3, remat=True))]
    trained, _ = stages_lib.training(model, params, images, EVAL)
    return (_ravit_by_hand(model, params, images),
            [*staged, jnp.stack(trained)],
            model.apply({'params': params['backbone']}, images))

  want, found, plain = run(params, images)
  for got in found:
    _close(got, want)
  _close(plain, want[np.array([3, 5])])
  assert _apart(np.asarray(want)) > 0.1


def test_images_of_another_size(model, params):
  stage = stages_lib.stages(model)[0]
  with pytest.raises(ValueError, match=r'images.*\[B, 8, 8, 1\]'):
    stage(params, np.zeros((1, 9, 9, 1), np.float32), None)


def _nets(model):
  return learned.PolicyNets(
      num_layers=plan.num_layers(model), num_classes=model.num_classes,
      head=True, hidden=7)


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
    pytest.param('vit_digits_patch2_8', dict(exits=PLAIN, distillation=True),
                 marks=pytest.mark.nightly),
    # A grid of 7 x 7 patches: the heads pool an odd row with itself.
    ('vit_small_patch32_224',
     dict(exits=[(6, head) for head in exit_heads.HEADS])),
    pytest.param(
        'vit_cifar_conv8_32', dict(exits=((1, 'mlp'), (3, 'cnn_project'))),
        marks=pytest.mark.nightly),
    # All tokens of the first branch are read by a head beside its own exit.
    ('ravit_cifar_patch4_32',
     dict(exits=((1, 'mlp'), (3, 'cnn_project')), num_fixed=0))])
def test_macs_are_the_programs_own(name, overrides):
  model = models.create(name, **overrides)
  params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  spend = cost.of(model)
  assert _count(
      model, stages_lib.stages(model, inference=False), params) == spend.stages
  *early, last = _count(model, stages_lib.stages(model), params)
  assert early == list(spend.stages[:-1])
  # Nobody reads the other tokens of the last encoder.
  every = fixed.all_layers(plan.num_layers(model))
  end = plan.num_encoders(model) - 1
  read_by_all = Actions(*(np.where(np.arange(len(a)) == end - model.num_fixed,
                                   a, 0) for a in every))
  assert last == spend.stages[-1] - cost.left_out(model, read_by_all)
  # Added exits are in the stages alone.
  plain = cost.of(model.clone(exits=()))
  assert spend.dense == plain.dense
  heads = [cost.head_macs(model, e) for e in plan.exits(model) if e.head]
  assert sum(spend.stages) == spend.dense + sum(heads)


# Of the 4 stages, that in which the policy decides behind M encoders.
@pytest.mark.parametrize('num_fixed, asked', [(0, 0), (1, 1), (2, 1), (3, 3)])
def test_macs_with_a_policy_are_the_programs_own(num_fixed, asked):
  model = tiny.model(exits=STEERED, num_fixed=num_fixed)
  nets = _nets(model)

  def build():
    key = jax.random.key(0)
    return {**models.init_params(model, key),
            **learned.init_params(nets, model, key)}

  def decide(params, z1, images):
    features = learned.observe(nets, model, params, z1, images)
    return learned.greedy(nets, params['policy'], features)

  stages = stages_lib.stages(model, decide=decide, mode='masked')
  spend = cost.of(model, nets)
  assert _count(model, stages, jax.eval_shape(build)) == spend.stages
  extra = np.subtract(spend.stages, cost.of(model).stages)
  np.testing.assert_array_equal(extra, spend.policy * (np.arange(4) == asked))
  assert spend.policy > 0
