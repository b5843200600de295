"""LeViT: its numbers, its BatchNorm, its biases, and every mode."""

import itertools
import types

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import batch_norm
from adavit_jax.models import levit_layers
from adavit_jax.models import plan
from adavit_jax.models.backbone import Context
from adavit_jax.runs import common_groups
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Folded parameters, with two heads; GMACs of matrix products and convolutions;
# what the authors' code counts, which includes the divisions of the softmax.
TABLE = {
    'levit_128s': (7_756_466, '0.305', 305_108_946),
    'levit_128': (9_188_864, '0.405', 406_114_880),
    'levit_192': (10_918_613, '0.657', 657_601_916),
    'levit_256': (18_856_276, '1.127', 1_128_024_056),
    'levit_384': (39_074_100, '2.352', 2_352_935_380)}


@pytest.mark.parametrize('name', TABLE)
def test_numbers_of_the_paper(name):
  model, (num, gmacs, counted) = models.create(name), TABLE[name]
  folded = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))['backbone']
  groups = [g for g in model.groups().values() if 'table' in g.others]
  tables = [g.others['table'] for g in groups]
  rows = [g.num or 1 for g in groups]
  gathered = sum(g['biases'].size for g in folded.values() if 'biases' in g)
  assert num == sum(x.size for x in jax.tree.leaves(folded)) - gathered + sum(
      heads * places * row for (heads, places), row in zip(tables, rows))
  macs = cost.of(model).dense
  assert f'{macs / 1e9:.3f}' == gmacs
  assert macs + gathered == counted


def test_the_contract_is_kept():
  models.check_backbone(efficient.levit(exits=((1, 'vit'), (3, 'cnn_add'))))


# The residual MLP behind the bridge is the second of the plan's encoders.
@pytest.mark.parametrize('num_fixed', [
    0, pytest.param(1, marks=pytest.mark.nightly),
    pytest.param(2, marks=pytest.mark.nightly)])
def test_modes_agree(num_fixed):
  model = efficient.levit(num_fixed=num_fixed)
  assert plan.num_encoders(model) == 4
  assert plan.num_layers(model) == {0: (3, 4), 1: (2, 3), 2: (2, 2)}[num_fixed]
  efficient.check_modes(model)


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  efficient.check_exits(efficient.levit(exits=((1, 'cnn_add'), (2, 'mlp'))))


def test_macs_are_those_of_the_program():
  efficient.check_macs(efficient.levit(num_fixed=1))


def test_distances_are_numbered_as_the_authors_do():
  """By first occurrence; their files hold tables in this order."""
  for side, stride in ((3, 1), (4, 1), (5, 2), (4, 2)):
    points = list(itertools.product(range(side), repeat=2))
    queries = list(itertools.product(range(0, side, stride), repeat=2))
    places = {}
    want = [[places.setdefault((abs(p[0] - q[0]), abs(p[1] - q[1])),
                               len(places)) for p in points] for q in queries]
    np.testing.assert_array_equal(
        levit_layers.distances(side, stride), want)


def test_norm_is_that_of_the_batch_in_training():
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(3, 4, 2)) * 3 + 1)
  p = dict(scale=np.float32([2, 3]), bias=np.float32([4, 5]))
  stats = dict(mean=np.float32([.1, .2]), var=np.float32([.3, .4]))
  mean, var = x.mean((0, 1)), x.var((0, 1))
  y, new = batch_norm.norm(p, x, stats, train=True)
  want = (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
      new['mean'], 0.9 * stats['mean'] + 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(
      new['var'], 0.9 * stats['var'] + 0.1 * var, rtol=1e-5)
  y, same = batch_norm.norm(p, x, stats, train=False)
  want = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  np.testing.assert_allclose(
      y, want * p['scale'] + p['bias'], rtol=1e-5, atol=1e-5)
  assert same is stats


def test_folded_equals_unfolded_and_training_updates_all():
  model = efficient.levit()
  params, images = efficient.params(model), efficient.images(model)
  stats = params['batch_stats']

  def run(params, stats, train):
    ctx = Context(train, stats=stats)
    result = modes.embed(model, params, images, ctx)
    x, stats, _ = masked.run(
        model, params, result.x, ctx=ctx._replace(stats=result.stats))
    return model.classify(
        params['backbone'], x, 0, ctx._replace(stats=stats)), stats
  run = jax.jit(run, static_argnums=2)

  (want, changed), same = run(params, stats, False)
  assert not changed
  jax.tree.map(np.testing.assert_array_equal, same, stats)
  got = jax.jit(lambda p, x: modes.forward(model, p, x))(params, images)
  for a, b in ((got.cls, want.cls), (got.dist, want.dist),
               (got.total, (want.cls + want.dist) / 2)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.std(b))
  # Another variance, other logits: the statistics matter.
  other = jax.tree.map(lambda x: 2 * x, stats)
  assert np.abs(run(params, other, False)[0][0].cls - want.cls).max() > 0.1
  (logits, changed), new = run(params, stats, True)
  new = {**new, **changed}
  assert np.abs(logits.cls - want.cls).max() > 0.1
  moved = jax.tree.map(lambda a, b: np.abs(a - b).min(), new, stats)
  assert min(jax.tree.leaves(moved)) > 0


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
  model = efficient.levit(dtype='bfloat16')
  params, images = efficient.check_bfloat16(model)
  ctx = lambda stats: Context(True, stats=stats)
  x, stats = jax.eval_shape(lambda p, x: modes.embed(
      model, p, x, ctx(p['batch_stats'])), params, images)[:2]
  assert x.dtype == jnp.bfloat16
  assert {s.dtype for s in jax.tree.leaves(stats)} == {jnp.dtype('float32')}


def test_other_heads_are_refused_with_the_attribute_of_levit():
  saved, wanted = (types.SimpleNamespace(model=efficient.levit(heads=heads))
                   for heads in ((2, 2), (1, 2)))
  with pytest.raises(ValueError, match=r'config.model.heads=\(2, 2\)'):
    common_groups.common_groups(saved, wanted, {}, 'DIR')


def test_an_encoder_begins_as_the_identity():
  model = efficient.levit()

  @jax.jit
  def run(images):
    params = models.fold(model, models.init_params(model, jax.random.key(0)))
    x = modes.embed(model, params, images).x
    return x, masked.run(model, params, x, stop=1).x

  x, got = run(efficient.images(model))
  np.testing.assert_array_equal(got, x)
  assert np.abs(x).max() > 0.1


@pytest.mark.parametrize('overrides, field', [
    (dict(patch_size=3), 'patch_size=3.*power of two'),
    (dict(patch_size=8), 'patch_size=8.*image_size=12'),
    (dict(widths=()), r'widths=\(\)'),
    (dict(widths=(1, 8)), r'widths=\(1, 8\)'),
    (dict(depths=(1,)), r'depths=\(1,\)'),
    (dict(depths=(1, 0)), 'depths'),
    (dict(heads=(2, 3.)), 'heads'),
    (dict(heads=3), 'heads=3'),
    (dict(key_dim=9), r'key_dim=9.*widths=\(8, 6\)'),
    (dict(key_dim=0), 'key_dim=0'),
    (dict(distillation=1), 'distillation=1'),
    (dict(num_fixed=4), 'num_fixed=4'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.levit(**overrides)
