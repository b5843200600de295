"""Evo-LeViT: its numbers, its selections, and every mode."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import evo_levit_layers
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Context
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
from evo_levit_file import checkpoint
from evo_levit_file import tensors
import jax
import jax.numpy as jnp
import numpy as np
import numpy_evo_levit
import pytest

KEY = jax.random.key(0)
# Parameters without the heads of training, and GMACs of the authors' code.
TABLE = {
    'evo_levit_128s': (7_835_115, '0.256'),
    'evo_levit_128': (9_269_486, '0.305'),
    'evo_levit_192': (11_031_990, '0.510'),
    'evo_levit_256': (19_007_230, '0.880'),
    'evo_levit_384': (39_295_758, '1.849'),
    'evo_levit_256_384': (19_238_270, '2.763'),
    'evo_levit_384_384': (39_636_238, '5.622')}


@pytest.mark.parametrize('name', TABLE)
def test_macs_of_the_authors(name):
  assert f'{cost.of(models.create(name)).dense / 1e9:.3f}' == TABLE[name][1]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.nightly] * (name[-1] != 's'))
    for name in TABLE])
def test_parameters_of_the_authors(name):
  shapes = jax.eval_shape(
      lambda: models.init_params(models.create(name), KEY))['backbone']
  assert TABLE[name][0] == sum(
      x.size for group, tree in shapes.items()
      if not group.startswith('head_cls') for x in jax.tree.leaves(tree))


def test_patches_that_run():
  kept = lambda name: [models.create(name).kept(i) for i in range(3)]
  assert kept('evo_levit_192') == [98, 24, 8]
  assert kept('evo_levit_256_384') == [288, 72, 18]


def _want(model, file, images, dropped=()):
  """By NumPy: ({head: logits [B, K]}, sets of places that ran, by image)."""
  naive, logits, kept = numpy_evo_levit.Naive(model, file, dropped), [], []
  for image in images:
    logits.append(naive.one(image))
    kept.append(naive.kept)
  return {name: np.array([y[name] for y in logits]) for name in logits[0]}, kept


def _close(got, want):
  for name in ('cls', 'dist'):
    np.testing.assert_allclose(getattr(got, name), want[name], rtol=1e-5,
                               atol=1e-5 * want[name].std())
  np.testing.assert_array_equal(got.total, (got.cls + got.dist) / 2)


def _check(model, seed=4, actions=None, dropped=()):
  """The masked mode equals NumPy; returns the sets of places that ran."""
  file, images = tensors(model, seed), efficient.images(model)
  params = weights.load(model, checkpoint(file), KEY)
  got = jax.jit(lambda p, x: modes.forward(
      model, p, x, actions, mode='masked'))(params, images)
  # A share below 1 is that of training steps.
  want, kept = _want(model.copy(layerwise=int(model.layerwise)), file, images,
                     dropped)
  _close(got, want)
  return kept


def test_logits_equal_those_of_numpy():
  kept = _check(efficient.evo_levit())
  assert [[len(places) for places in sets] for sets in kept] == [[8, 2]] * 3


@pytest.mark.nightly
@pytest.mark.parametrize('overrides', [
    dict(keep_ratio=1), dict(keep_ratio=0.8), dict(keep_ratio=0.3),
    dict(keep_ratio=0.8, layerwise=1), dict(num_fixed=3)])
def test_other_shares_equal_those_of_numpy(overrides):
  for seed in range(3):
    _check(efficient.evo_levit(**overrides), seed)


@pytest.mark.nightly
def test_a_dropped_attention_leaves_the_scores():
  """The first that runs sets them; before it, all weigh the same."""
  dropped = ('blocks.0.m1', 'blocks.1.m2', 'blocks.5.m1')
  actions = Actions(np.array([0, 1, 1, 0]), np.array([1, 0, 1, 1, 1]))
  _check(efficient.evo_levit(num_fixed=0), 4, actions, dropped)


def test_layerwise_ends_with_the_steps():
  """Until then each encoder selects anew; inference selects by stages.

  Both give the logits of NumPy, and a patch that waited comes back.
  """
  model = efficient.evo_levit(layerwise=0.75)
  file, images = tensors(model, 4), efficient.images(model)
  params = weights.load(model, checkpoint(file), KEY)
  anew, kept = _want(model.copy(layerwise=1), file, images)
  assert any(second - first for _, first, second in kept)
  stages, _ = _want(model.copy(layerwise=0), file, images)
  assert np.abs(anew['cls'] - stages['cls']).max() > 0.1

  @jax.jit
  def run(progress):
    ctx = Context(stats=params['batch_stats'], progress=progress)
    x = modes.embed(model, params, images, ctx).x
    x = masked.run(model, params, x, ctx=ctx).x
    return model.classify(params['backbone'], x, 0, ctx)[0]

  _close(run(0.74), anew)
  _close(run(0.75), stages)


@pytest.mark.nightly
def test_weights_of_new_scores_are_learned():
  """Not of the first attention, nor where no selection follows."""
  def gradient(layerwise):
    model = efficient.evo_levit(depths=(3, 2), layerwise=layerwise)
    params, images = efficient.params(model), efficient.images(model)
    ctx = Context(stats=params['batch_stats'])

    def loss(backbone):
      groups = dict(params, backbone=backbone)
      x = modes.embed(model, groups, images, ctx).x
      x = masked.run(model, groups, x, ctx=ctx).x
      return model.classify(backbone, x, 0, ctx)[0].total.sum()

    g = jax.jit(jax.grad(loss))(params['backbone'])
    groups = 'encoders_0', 'subsample_1', 'encoders_1'
    return [g[name]['tradeoff'].ravel() for name in groups]

  first, subsample, last = gradient(0.)
  assert first[0] == 0 and np.all(first[1:]) and np.all(subsample)
  for g in (last, *gradient(1)):
    assert not np.any(g)


@pytest.mark.nightly
@pytest.mark.parametrize('layerwise', [0.75, 1])
def test_inference_of_layerwise_models(layerwise):
  _check(efficient.evo_levit(layerwise=layerwise))


def test_restoring_undoes_selecting():
  """The others gain what the representative token has gained."""
  rng = np.random.default_rng(0)
  tokens = np.float32(rng.normal(size=(2, 6, 3)))
  scores = np.float32([[1, 5, 2, 5, 3], [4, 1, 1, 0, 2]])
  x = jax.jit(lambda x: evo_levit_layers.select(x, 2))(
      dict(tokens=tokens, scores=scores))
  np.testing.assert_array_equal(x['order'], [[1, 3, 4, 2, 0], [0, 4, 1, 2, 3]])
  last = [(3 * tokens[0, 5] + 2 * tokens[0, 3] + tokens[0, 1]) / 6,
          (tokens[1, 2] + tokens[1, 3]) / 2]
  np.testing.assert_allclose(x['tokens'][:, 3], last, rtol=1e-5)
  restore = jax.jit(evo_levit_layers.restore)
  same = restore(x)
  np.testing.assert_array_equal(same['tokens'], tokens)
  np.testing.assert_array_equal(same['scores'], scores)
  x = dict(x, tokens=x['tokens'] + np.arange(4, dtype=np.float32)[:, None])
  gained = np.array([[0, 3, 1, 3, 2, 3], [0, 1, 3, 3, 3, 2]])
  np.testing.assert_allclose(restore(x)['tokens'],
                             tokens + gained[..., None], rtol=1e-5, atol=1e-6)
  # Without scores, all weigh the same.
  mean = jax.jit(evo_levit_layers.representative)(
      tokens, np.zeros((2, 6), np.float32))
  np.testing.assert_allclose(mean[:, 0], tokens.mean(1), rtol=1e-5, atol=1e-6)


def test_heads_of_training_read_the_class_token():
  model = efficient.evo_levit()
  params = efficient.params(model)
  p, stats = params['backbone'], params['batch_stats']
  x = dict(tokens=np.float32(np.random.default_rng(0).normal(size=(5, 5, 6))))

  def head(name, y):
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    y = y * p[f'{name}_norm']['scale'] + p[f'{name}_norm']['bias']
    return y @ p[name]['kernel'] + p[name]['bias']

  got, new = jax.jit(lambda p, x, stats: model.classify(
      p, x, 0, Context(True, stats=stats)))(p, x, stats)
  mean, cls = x['tokens'][:, 1:].mean(1), x['tokens'][:, 0]
  for y, name, z in ((got.cls, 'head', mean), (got.dist, 'head_dist', mean),
                     (got.aux.cls, 'head_cls', cls),
                     (got.aux.dist, 'head_cls_dist', cls)):
    np.testing.assert_allclose(y, head(name, z), rtol=1e-4, atol=1e-5)
    assert np.all(new[f'{name}_norm']['mean'] != stats[f'{name}_norm']['mean'])
  folded, logits = jax.eval_shape(lambda p, stats: (
      model.fold(p, stats), model.classify(model.fold(p, stats), x, 0,
                                           Context())[0]), p, stats)
  assert not any(name.startswith('head_cls') for name in folded)
  assert logits.aux is None


def test_the_contract_is_kept():
  models.check_backbone(efficient.evo_levit(
      exits=((1, 'cnn_add'), (2, 'vit'), (3, 'cnn_add'), (4, 'mlp'))))
  models.check_backbone(efficient.evo_levit(layerwise=0.5))
  with pytest.raises(ValueError, match='cnn_add'):  # no grid
    efficient.evo_levit(exits=((2, 'cnn_add'),))


@pytest.mark.parametrize('overrides', [
    dict(widths=(8,), depths=(2,), heads=(2,), num_fixed=0),
    *(pytest.param(overrides, marks=pytest.mark.nightly) for overrides in (
        dict(num_fixed=0), dict(num_fixed=1, layerwise=1), dict(num_fixed=2),
        dict(num_fixed=3, keep_ratio=0.3, layerwise=0.5),
        dict(num_fixed=0, keep_ratio=1)))])
def test_modes_agree(overrides):
  efficient.check_modes(efficient.evo_levit(**overrides))


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  efficient.check_exits(efficient.evo_levit(
      exits=((1, 'cnn_add'), (2, 'mlp'), (4, 'vit'))))


def test_macs_are_those_of_the_program():
  efficient.check_macs(efficient.evo_levit())


@pytest.mark.nightly
@pytest.mark.parametrize('name', ['evo_levit_128s', 'evo_levit_256_384'])
def test_xla_counts_the_same_macs(name):
  model = models.create(name)
  params = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, KEY)))
  size = model.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

  def run(params, x):
    x = modes.embed(model, params, x).x
    # A loop would be counted once.
    x = masked.run(model, params, x, unroll=max(model.depths)).x
    return modes.classify(model, params, x).total

  flops = jax.jit(run).lower(params, image).cost_analysis()['flops']
  np.testing.assert_allclose(flops / 2, cost.of(model).dense, rtol=0.02)


def test_bfloat16_keeps_parameters_scores_and_logits_in_float32():
  efficient.check_bfloat16(efficient.evo_levit(dtype='bfloat16'))


@pytest.mark.parametrize('overrides, field', [
    (dict(keep_ratio=1.5), 'keep_ratio=1.5'),
    (dict(keep_ratio=0.2), 'keep_ratio=0.2.*stage 1'),
    (dict(keep_ratio=True), 'keep_ratio=True'),
    (dict(layerwise=-0.1), 'layerwise=-0.1'),
    (dict(layerwise='1'), "layerwise='1'"),
    (dict(num_full=0), 'num_full=0'),
    (dict(depths=(1, 0)), 'depths'),
    (dict(num_fixed=5), 'num_fixed=5'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.evo_levit(**overrides)
