"""The transformer against NumPy, and every registered name."""

import math

from adavit_jax import models
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import stem as stem_lib
from adavit_jax.runtime import modes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_dvt_sizes
import tiny

# Stem + tokens + positions + encoders + norm + heads.
NUM_PARAMS = {
    'vit_digits_patch2_8': 240 + 48 + 816 + 8 * 18_960 + 96 + 490,
    'vit_scenes_patch4_16': 816 + 48 + 816 + 8 * 18_960 + 96 + 490,
    'vit_cifar_patch4_32': 9_408 + 192 + 12_480 + 9 * 297_024 + 384 + 1_930,
    'vit_cifar_conv8_32':
        109_984 + 128 + 2_176 + 8 * 132_480 + 256 + 1_290,
    'vit_tiny_patch16_224': 5_717_416,
    'vit_small_patch16_224': 22_050_664,
    'vit_base_patch16_224': 86_567_656,
    'deit_tiny_patch16_224': 5_717_416,
    'deit_small_patch16_224': 22_050_664,
    'deit_base_patch16_224': 86_567_656,
    'deit_tiny_distilled_patch16_224': 5_910_800,
    'deit_small_distilled_patch16_224': 22_436_432,
    'deit_base_distilled_patch16_224': 87_338_192,
    'vit_tiny_patch16_384': 5_790_376,
    'vit_small_patch16_384': 22_196_584,
    'vit_base_patch16_384': 86_859_496,
    'vit_large_patch16_224': 304_326_632,
    'vit_large_patch16_384': 304_715_752,
    'vit_small_patch32_224': 22_878_952,
    'vit_small_patch32_384': 22_915_432,
    'vit_base_patch32_224': 88_224_232,
    'vit_base_patch32_384': 88_297_192,
    'vit_large_patch32_224': 306_535_400,
    'vit_large_patch32_384': 306_632_680,
    'deit_base_patch16_384': 86_859_496,
    'deit_base_distilled_patch16_384': 87_630_032,
    # CLS + per branch: stem, positions, encoders, norm, head.
    'ravit_cifar_patch4_32':
        128 + (6_272 + 17 * 128 + 198_272 + 256 + 1_290)
        + (6_272 + 65 * 128 + 3 * 198_272 + 256 + 1_290),
    'ravit_tiny_imagenet_patch4_64':
        768 + (37_632 + 17 * 768 + 2 * 7_087_872 + 1_536 + 153_800)
        + (37_632 + 257 * 768 + 3 * 7_087_872 + 1_536 + 153_800),
    'ravit_imagenet_patch16_224':
        768 + 3 * (590_592 + 1_536 + 769_000) + (17 + 65 + 197) * 768
        + 10 * 7_087_872,
    'levit_cifar_32': 2_118_922,
    'levit_128s': 7_777_058,
    'levit_128': 9_213_936,
    'levit_192': 10_947_069,
    'levit_256': 18_893_876,
    'levit_384': 39_128_836,
    'crossvit_cifar_32': 1_505_108,
    'crossvit_tiny_240': 7_014_800,
    'crossvit_small_240': 26_856_272,
    'crossvit_base_240': 105_025_232,
    'crossvit_9_240': 8_553_296,
    'crossvit_15_240': 27_528_464,
    'crossvit_18_240': 43_271_408,
    'crossvit_9_dagger_240': 8_776_592,
    'crossvit_15_dagger_240': 28_209_008,
    'crossvit_18_dagger_240': 44_266_976,
    'crossvit_15_dagger_408': 28_500_080,
    'crossvit_18_dagger_408': 44_606_560,
    'shuffle_cifar_32': 1_077_150,
    'shuffle_tiny_224': 28_532_482,
    'shuffle_small_224': 50_076_178,
    'shuffle_base_224': 88_398_560,
    # With norm and head of the class token, for training alone.
    'evo_cifar_32': 4_704 + 96 + 6_240 + 8 * 74_784 + 2 * 1_162,
    'evo_deit_tiny_224': 5_910_800,
    'evo_deit_small_224': 22_436_432,
    'evo_deit_base_224': 87_338_192,
    'evo_deit_small_384': 22_582_352,
    'evo_deit_base_384': 87_630_032,
    # With the two heads of the class token, likewise.
    'evo_levit_128s': 8_606_651,
    'evo_levit_128': 10_041_022,
    'evo_levit_192': 11_803_526,
    'evo_levit_256': 20_035_278,
    'evo_levit_384': 40_836_830,
    'evo_levit_256_384': 20_266_318,
    'evo_levit_384_384': 41_177_310,
    'vil_cifar_32': 1_001_034,
    'vil_tiny_224': 6_707_080,
    'vil_small_224': 24_635_752,
    'vil_medium_deep_224': 39_721_192,
    'vil_medium_wide_224': 39_776_488,
    'vil_base_deep_224': 55_696_360,
    'vil_base_wide_224': 78_998_760,
    'vil_tiny_rpb_224': 6_719_698,
    'vil_small_rpb_224': 24_657_328,
    'vil_medium_deep_rpb_224': 39_782_296,
    'vil_medium_deep_384': 39_736_552,
    'vil_medium_wide_384': 39_800_808,
    'vil_base_deep_384': 55_711_720,
    'vil_base_wide_384': 79_026_920,
    **test_dvt_sizes.NUM_PARAMS,
}
HEADS = {  # by width
    48: 2, 96: 3, 128: 4, 192: 3, 256: 4, 384: 6, 768: 12, 1024: 16}
FIXED = dict.fromkeys(  # of the others one
    ('vit_scenes_patch4_16', 'vit_cifar_patch4_32', 'vit_cifar_conv8_32',
     'evo_cifar_32'), 2)


def _norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def _dense(x, p):
  return x @ p['kernel'] + p['bias']


def _gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _attention(q, k, v):
  logits = np.einsum('bhnd,bhmd->bhnm', q, k) / math.sqrt(q.shape[-1])
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhnm,bhmd->bhnd', weights, v)


def _encoder(x, p, num_heads):
  """The two branches with their residuals, float64 [B, N, D]."""
  b, n, d = x.shape
  heads = lambda y: y.reshape(b, n, num_heads, -1).transpose(0, 2, 1, 3)
  q, k, v = np.split(_dense(_norm(x, p['norm1']), p['qkv']), 3, axis=-1)
  y = _attention(heads(q), heads(k), heads(v))
  x = x + _dense(y.transpose(0, 2, 1, 3).reshape(b, n, d), p['proj'])
  y = _gelu(_dense(_norm(x, p['norm2']), p['fc1']))
  return x + _dense(y, p['fc2'])


def _float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# Other sizes of models that are tested beside them.
_OTHERS = ('t2t', 'small', 'medium', 'base', 'large', '14', '15', '18', '256',
           '384', 'crossvit_cifar', 'crossvit_tiny', 'levit_cifar',
           'shuffle_cifar', 'vil_cifar', 'dvt_cifar', 'evo_cifar')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.nightly] * any(
        part in name for part in _OTHERS)) for name in models.names()])
def test_number_of_parameters(name):
  model = models.create(name)
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  found = jax.tree.leaves(params['backbone'])
  assert sum(x.size for x in found) == NUM_PARAMS[name]
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@pytest.mark.parametrize('name', [
    name for name in models.names() if hasattr(models.create(name), 'width')])
def test_what_the_parameters_do_not_show(name):
  model = models.create(name)
  assert model.num_heads == HEADS[model.width]
  assert model.num_fixed == FIXED.get(name, 1)


def test_every_name_has_a_known_size():
  assert models.names() == sorted(NUM_PARAMS)


def test_attention_is_softmax_of_scaled_products():
  q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 5, 4), scale=2)
  got = encoder_lib.attention(*map(jnp.float32, (q, k, v)))
  np.testing.assert_allclose(got, _attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_attention_takes_products_beyond_the_range_of_exp():
  q = 100 * jnp.eye(4)[None, None]
  v = jnp.float32(np.random.default_rng(0).normal(size=(1, 1, 4, 4)))
  np.testing.assert_array_equal(encoder_lib.attention(q, q, v), v)


def test_attention_softmax_is_float32_in_bfloat16():
  q, k, v = jnp.ones((3, 1, 1, 1024, 4), jnp.bfloat16)
  got = encoder_lib.attention(q, k, v)
  assert got.dtype == jnp.bfloat16
  # A bfloat16 sum of 1024 terms stalls far below 1024.
  np.testing.assert_array_equal(np.asarray(got, np.float32), 1)


def test_model_equals_numpy():
  model = tiny.model(distillation=True, num_fixed=2)
  params = tiny.params(model)
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 1))
  got = jax.jit(model.apply)(
      {'params': params['backbone']}, jnp.float32(images))

  p = _float64(params['backbone'])
  # [B, row, row in patch, column, column in patch], patches in row order.
  x = images.reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(2, 4, 16)
  x = (x @ p['patch_embed']['proj']['kernel'].reshape(16, 16)
       + p['patch_embed']['proj']['bias'])
  prefix = [np.tile(p[t], (2, 1, 1)) for t in ('cls', 'dist')]
  x = np.concatenate([*prefix, x], axis=1) + p['pos_embedding']
  for i in range(4):
    x = _encoder(x, jax.tree.map(lambda leaf: leaf[i], p['encoders']), 2)
  x = _norm(x, p['norm'])
  cls, dist = _dense(x[:, 0], p['head']), _dense(x[:, 1], p['head_dist'])
  np.testing.assert_allclose(got.cls, cls, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.dist, dist, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.total, (cls + dist) / 2, rtol=1e-4, atol=1e-5)


def test_total_without_distillation_is_the_class_head():
  logits = models.Logits(jnp.ones((2, 3)))
  assert logits.total is logits.cls


def test_conv_stem_equals_numpy():
  stem = stem_lib.ConvStem(width=8, patch_size=2)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(1, 4, 4, 3))
  shapes = jax.eval_shape(
      lambda: stem.init(jax.random.key(0), jnp.float32(images)))['params']
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  got = jax.jit(stem.apply)({'params': params}, jnp.float32(images))

  p = _float64(params)
  padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
  windows = [padded[0, 2 * r:2 * r + 3, 2 * c:2 * c + 3]
             for r in range(2) for c in range(2)]
  x = np.einsum('nhwc,hwcd->nd', windows, p['Conv_0']['kernel'])
  x = _dense(_gelu(_norm(x, p['LayerNorm_0'])), {
      'kernel': p['proj']['kernel'][0, 0], 'bias': p['proj']['bias']})
  np.testing.assert_allclose(got, x[None], rtol=1e-4, atol=1e-5)


def test_conv_stem_has_the_patch_stems_grid():
  assert stem_lib.conv_stem_channels(128, 8) == [32, 64, 128]
  model = models.create('vit_cifar_conv8_32')
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  embed = lambda p, x: modes.embed(model, p, x).x
  assert jax.eval_shape(embed, params, images).shape == (2, 1 + 16, 128)


def test_a_model_traced_again_initializes_nothing_again(monkeypatch):
  inits, init = [], encoder_lib.Encoder.init
  def spy(self, *args):
    inits.append(self)
    return init(self, *args)
  monkeypatch.setattr(encoder_lib.Encoder, 'init', spy)
  model = tiny.model(width=20, num_heads=5)
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  first = len(inits)
  for size in (1, 2):
    images = jax.ShapeDtypeStruct((size, 8, 8, 1), jnp.float32)
    for run in (lambda p, x: model.apply({'params': p['backbone']}, x),
                lambda p, x: modes.forward(model, p, x)):
      jax.eval_shape(run, params, images)
  assert len(inits) == first


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  model = tiny.model(dtype='bfloat16')
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  for run in (lambda p, x: model.apply({'params': p['backbone']}, x),
              lambda p, x: modes.forward(model, p, x)):
    assert jax.eval_shape(run, params, images).total.dtype == jnp.float32
  embed = lambda p, x: modes.embed(model, p, x).x
  assert jax.eval_shape(embed, params, images).dtype == jnp.bfloat16


@pytest.mark.parametrize('overrides, field', [
    (dict(widht=3), 'widht.*width'),
    (dict(depth=2, num_fixed=2), 'num_fixed'),
    (dict(num_fixed=8), 'num_fixed'),
    (dict(num_fixed=-1), 'num_fixed'),
    (dict(num_fixed=1.), 'num_fixed'),
    (dict(num_fixed='1'), 'num_fixed'),
    (dict(patch_size=3), 'patch_size'),
    (dict(num_heads=5), 'num_heads.*width'),
    (dict(stem='cnn'), 'stem'),
    (dict(stem='conv', patch_size=6, image_size=12), 'stem.*patch_size'),
    (dict(distillation=2), 'distillation'),
    (dict(depth=0), 'depth'),
    (dict(depth='4'), 'depth'),
    (dict(mlp_ratio=0), 'mlp_ratio.*width=48'),
    (dict(mlp_ratio='4'), 'mlp_ratio'),
    (dict(mlp_ratio=float('inf')), 'mlp_ratio'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    models.create('vit_digits_patch2_8', **overrides)


@pytest.mark.parametrize('num_fixed', range(8))
def test_any_encoder_but_the_last_may_be_fixed(num_fixed):
  model = models.create('vit_digits_patch2_8', num_fixed=num_fixed)
  assert model.num_fixed == num_fixed and model.depth == 8


_VIT, _RAVIT = 'vit_digits_patch2_8', 'ravit_cifar_patch4_32'


@pytest.mark.parametrize('name', [_VIT, _RAVIT])
@pytest.mark.parametrize('more', [{}, dict(exits=((1, 'mlp'),))])
@pytest.mark.parametrize('key, value', [
    *((key, 0) for key in ('image_size', 'patch_size', 'channels',
                           'num_classes', 'width', 'num_heads')),
    ('num_classes', -1), ('width', 48.), ('patch_size', [2, 2]),
    *(('dtype', x) for x in ('float31', 'int32', 'float64', jnp.int8, None))])
def test_wrong_numbers(name, more, key, value):
  with pytest.raises(ValueError, match=f'^{key}='):
    models.create(name, **more, **{key: value})


@pytest.mark.parametrize('key', [
    0, None, np.float32(1), np.uint32(0), jax.random.split(jax.random.key(0)),
    jax.random.split(jax.random.PRNGKey(0)), np.zeros(4, np.uint32)])
def test_what_is_not_one_key(key):
  with pytest.raises(ValueError, match='key='):
    models.init_params(tiny.model(), key)


@pytest.mark.parametrize('name', [_VIT, _RAVIT])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_dtypes(name, dtype):
  for given in (dtype, getattr(jnp, dtype), jnp.dtype(dtype)):
    assert models.create(name, dtype=given).dtype == jnp.dtype(dtype)
  assert models.create(name, num_classes=np.int64(3)).num_classes == 3


@pytest.mark.parametrize('name', [
    'vit_digits_patch2_8', 'ravit_cifar_patch4_32',
    'deit_tiny_distilled_patch16_224'])
def test_parameters_are_float32_under_x64(name):
  model = models.create(name, exits=((1, 'resmlp'),))
  jax.config.update('jax_enable_x64', True)
  try:
    shapes = jax.eval_shape(
        lambda: models.init_params(model, jax.random.key(0)))
  finally:
    jax.config.update('jax_enable_x64', False)
  assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {'float32'}


def test_unknown_names():
  with pytest.raises(ValueError, match="'vit_tiny_patch16_224'"):
    models.create('vit_tiny_patch16_22')
  with pytest.raises(ValueError, match="'resnet'.*'deit_base"):
    models.create('resnet')


@pytest.mark.parametrize('shape, hint', [
    ((2, 8, 8, 3), 'channels'),
    ((2, 16, 16, 1), 'image_size=16'),
    ((8, 8, 1), r'image\[None\]'),
    ((8, 8), r'images\[..., None\]'),
    ((5, 8, 8), r'images\[..., None\]'),
    ((5, 1, 8, 8), 'channels.* last'),
    ((2, 8, 6, 1), 'squares'),
    ((7,), 'adavit_jax.load')])
def test_wrong_images(shape, hint):
  model = tiny.model()
  params, images = tiny.params(model), jnp.zeros(shape)
  for run in (lambda: model.apply({'params': params['backbone']}, images),
              lambda: modes.forward(model, params, images)):
    with pytest.raises(ValueError, match=r'images.*\[B, 8, 8, 1\].*' + hint):
      run()


@pytest.mark.parametrize('name', [_VIT, _RAVIT])
def test_no_images(name):
  model = models.create(name, width=8, num_heads=2)
  params = jax.eval_shape(
      lambda: models.init_params(model, jax.random.key(0)))
  images = jnp.zeros((0, model.image_size, model.image_size, model.channels))
  for run in (lambda p: model.apply({'params': p['backbone']}, images),
              lambda p: modes.forward(model, p, images)):
    with pytest.raises(ValueError, match=r'images.*\(0, .*B >= 1'):
      jax.eval_shape(run, params)
