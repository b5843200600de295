"""Evo-ViT on DeiT: its numbers, its selections, its heads, and every mode."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import token_selection
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Context
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import numpy_evo
import pytest

# GMACs of the authors' code, measured with torch; those of DeiT.
GMACS = dict(
    evo_deit_tiny_224=('0.818', '1.254'), evo_deit_small_224=('3.033', '4.599'),
    evo_deit_base_224=('11.658', '17.564'), evo_deit_small_384=('9.881', ''),
    evo_deit_base_384=('36.112', '55.484'))


@pytest.mark.parametrize('name', GMACS)
def test_macs_of_the_authors(name):
  model = models.create(name)
  for keep_ratio, want in zip((0.5, 1.), GMACS[name]):
    macs = cost.of(model.clone(keep_ratio=keep_ratio)).dense
    assert f'{macs / 1e9:.3f}' == want or not want


def test_inference_has_the_parameters_of_deit():
  model = models.create('evo_deit_tiny_224')
  params = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))
  assert sum(x.size for x in jax.tree.leaves(params)) == 5_717_416


def test_selection_sorts_and_restores():
  """Ties stay in order, and the class token in its place."""
  tokens = jnp.arange(5.)[None, :, None] * jnp.ones((2, 1, 3))
  scores = jnp.float32([[1, 3, 2, 3], [4, 1, 1, 2]])
  x = token_selection.select(
      dict(tokens=tokens, scores=scores), 2, scored=True)
  np.testing.assert_array_equal(
      x['tokens'][..., 0], [[0, 2, 4], [0, 1, 4]])
  np.testing.assert_array_equal(x['rest'][..., 0], [[3, 1], [2, 3]])
  np.testing.assert_array_equal(x['scores'], [[3, 3], [4, 2]])
  np.testing.assert_array_equal(x['rest_scores'], [[2, 1], [1, 1]])
  # Those that were set aside come back if the others lose their scores.
  x['scores'] = jnp.float32([[0, 1.5], [4, 2]])
  x = token_selection.select(x, 2, scored=False)
  assert set(x) == {'tokens', 'rest'}
  np.testing.assert_array_equal(
      x['tokens'][..., 0], [[0, 3, 4], [0, 1, 4]])
  np.testing.assert_array_equal(x['rest'][..., 0], [[1, 2], [2, 3]])


@pytest.mark.parametrize('overrides', [
    dict(keep_ratio=0.3, stage_length=1),
    *(pytest.param(overrides, marks=pytest.mark.nightly) for overrides in (
        dict(), dict(layerwise=1.), dict(keep_ratio=0.8, layerwise=1.),
        dict(keep_ratio=1.), dict(num_full=2, alpha=0.2, layerwise=1.),
        dict(num_full=3, alpha=1.)))])
def test_equals_lists_of_tokens(overrides):
  """With all layers, and under actions of each image."""
  model = efficient.evo(num_fixed=0, **overrides)
  params, images = efficient.params(model), efficient.images(model)
  keep = np.random.default_rng(0).integers(0, 2, (2, 3, 4))
  run = jax.jit(lambda p, x, a: modes.forward(model, p, x, a).total)
  for k in (np.ones_like(keep), keep):
    np.testing.assert_allclose(
        run(params, images, Actions(*k)),
        numpy_evo.logits(model, params['backbone'], images, k)[0],
        **efficient.CLOSE)


@pytest.mark.nightly
def test_layerwise_ends_with_the_steps():
  """Until then each encoder selects anew; inference selects by stages."""
  model = efficient.evo(depth=3, stage_length=2, layerwise=0.75)
  images = efficient.images(model)
  # So large that tokens that were set aside come back.
  params = jax.tree.map(lambda x: 2 * x, efficient.params(model, seed=1))
  stagewise, layerwise = (
      numpy_evo.logits(model.clone(layerwise=share), params['backbone'], images)
      for share in (0., 1.))
  assert np.abs(stagewise - layerwise).max() > 0.5

  def run(progress, model=model):
    ctx = Context(True, jax.random.key(0), {}, progress)
    x = modes.embed(model, params, images, ctx).x
    x = masked.run(model, params, x, ctx=ctx).x
    logits, _ = model.classify(params['backbone'], x, 0, ctx)
    return jnp.stack([logits.cls, logits.aux.cls])

  close = dict(rtol=2e-4, atol=2e-4)
  during = jax.jit(run)
  np.testing.assert_allclose(during(0.74), layerwise, **close)
  np.testing.assert_allclose(during(0.75), stagewise, **close)
  without, inference, always = jax.jit(lambda: (
      run(None), modes.forward(model, params, images),
      modes.forward(model.clone(layerwise=1.), params, images)))()
  np.testing.assert_allclose(without, stagewise, **close)
  np.testing.assert_allclose(inference.total, stagewise[0], **close)
  assert inference.aux is None
  np.testing.assert_allclose(always.total, layerwise[0], **close)


def test_with_all_tokens_it_is_a_vit_whose_head_reads_the_mean():
  model = efficient.evo(keep_ratio=1.)
  params, images = efficient.params(model), efficient.images(model)
  p = params['backbone']

  plain = models.create('vit_digits_patch2_8', width=8, depth=4, num_classes=4)

  @jax.jit
  def vit(p, images):
    x = modes.embed(plain, {'backbone': p}, images).x
    return encoder_lib.scan_stack(model.encoder, p['encoders'], x)

  mean = np.asarray(vit(p, images), np.float64)[:, 1:].mean(1)
  want = numpy_evo.dense(p['head'], numpy_evo.norm(p['norm'], mean))
  got = jax.jit(lambda p, x: modes.forward(model, p, x).total)(params, images)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_dropped_msa_layer_leaves_the_scores():
  model = efficient.evo(num_full=2)
  params, images = efficient.params(model), efficient.images(model)

  @jax.jit
  def scores(keep):
    x = modes.embed(model, params, images).x
    return masked.run(model, params, x, gates=Actions(keep, jnp.ones((3, 2))),
                      stop=2).x['scores']

  # The first of two encoders alone, and both; the last one counts.
  first, both = scores(jnp.array([[1, 0]] * 3)), scores(jnp.ones((3, 2)))
  assert not np.any(scores(jnp.zeros((3, 2))))
  for image, one in zip(images, first):
    p = jax.tree.map(np.float64, params['backbone'])
    x = numpy_evo.embed(model, p, np.float64(image))
    row = jax.tree.map(lambda leaf: leaf[0], p['encoders'])
    np.testing.assert_allclose(
        one, numpy_evo.msa(row, x, 2)[1], **efficient.CLOSE)
  assert np.abs(both - first).max() > 1e-3
  # Drop path scales what it keeps, but not the scores.
  np.testing.assert_allclose(
      scores(jnp.array([[1.5, 0]] * 3)), first, rtol=1e-6)


def test_the_contract_is_kept():
  models.check_backbone(efficient.evo(
      layerwise=0.5, exits=((1, 'cnn_add'), (2, 'vit'))))
  with pytest.raises(ValueError, match='cnn_add'):  # no grid
    efficient.evo(exits=((2, 'cnn_add'),))


@pytest.mark.parametrize('overrides', [
    dict(num_fixed=0, depth=3),
    *(pytest.param(overrides, marks=pytest.mark.nightly) for overrides in (
        dict(num_fixed=1), dict(num_fixed=2, layerwise=1.),
        dict(num_fixed=0, layerwise=0.5, keep_ratio=0.3),
        dict(num_fixed=3, keep_ratio=1.)))])
def test_modes_agree(overrides):
  efficient.check_modes(efficient.evo(**overrides))


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  efficient.check_exits(efficient.evo(
      num_fixed=1, exits=((1, 'mlp'), (2, 'vit'), (3, 'mlp'))))


def test_macs_are_those_of_the_program():
  efficient.check_macs(efficient.evo(num_fixed=0))


@pytest.mark.nightly
def test_xla_counts_the_same_macs():
  """Beside products it counts softmax, LayerNorm and GELU."""
  model = models.create('evo_deit_tiny_224')
  params = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

  def run(params, x):
    x = modes.embed(model, params, x).x
    # A loop would be counted once.
    x = masked.run(model, params, x, unroll=4).x
    return modes.classify(model, params, x).total

  flops = jax.jit(run).lower(params, image).cost_analysis()['flops']
  assert 1 < flops / 2 / cost.of(model).dense < 1.02


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  efficient.check_bfloat16(efficient.evo(dtype='bfloat16'))


@pytest.mark.parametrize('overrides, field', [
    (dict(keep_ratio=1.5), 'keep_ratio=1.5'),
    (dict(keep_ratio=0.05), 'keep_ratio=0.05'),
    (dict(keep_ratio='1'), "keep_ratio='1'"),
    (dict(layerwise=-1), 'layerwise=-1'),
    (dict(layerwise=True), 'layerwise=True'),
    (dict(alpha=2), 'alpha=2'),
    (dict(num_full=0), 'num_full=0'),
    (dict(num_full=4), 'num_full=4'),
    (dict(stage_length=0), 'stage_length=0'),
    (dict(patch_size=3), 'patch_size=3'),
    (dict(num_heads=3), 'num_heads=3'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.evo(**overrides)
