"""Other people's weights: what their libraries compute, we compute.

The checkpoints in golden/ and what their libraries say of them were written by
make_golden_weights.py.
"""

import functools
import pathlib

import adavit_jax
from adavit_jax import models
from adavit_jax import weights
from adavit_jax.models import plan
from adavit_jax.weights import positions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

GOLDEN = pathlib.Path(__file__).parent / 'golden'
KEY = jax.random.key(0)
CASES = {
    'timm_vit': '.safetensors', 'timm_deit': '.safetensors',
    'timm_deit_distilled': '.safetensors', 'hf_vit': '.safetensors',
    'hf_vit_model': '.safetensors', 'hf_deit': '.safetensors',
    'hf_deit_teacher': '.safetensors', 'augreg': '.npz', 'big_vision': '.npz'}
DISTILLED = ('timm_deit_distilled', 'hf_deit', 'hf_deit_teacher')


def path(name):
  return GOLDEN / f'{name}{CASES[name]}'


def golden_model(name, **overrides):
  return models.create('vit_tiny_patch16_224', **{**dict(
      image_size=12, patch_size=4, width=16, depth=3, num_heads=2,
      mlp_ratio=2., num_classes=5, num_fixed=2,
      distillation=name in DISTILLED), **overrides})


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, images):
  """Outputs of all encoders [N, B, T, D], and `Logits`."""
  params = params['backbone']
  x = model.apply({'params': params}, jnp.float32(images), method='tokenize')

  def run(x, p):
    x = model.encoder.apply({'params': p}, x)
    return x, x

  _, blocks = jax.lax.scan(run, x, params['encoders'])
  return blocks, model.apply({'params': params}, jnp.float32(images))


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)


@functools.lru_cache
def model_shapes(model):
  return shapes(jax.eval_shape(lambda: models.init_params(model, KEY)))


def error(got, want, unit):
  """Largest difference, in standard deviations of `unit`."""
  return np.abs(np.asarray(got, np.float64) - want).max() / unit.std()


@pytest.mark.parametrize('name', CASES)
def test_blocks_and_logits_equal_the_home_library(name):
  model = golden_model(name)
  params = weights.load(model, path(name), KEY)
  with np.load(GOLDEN / f'{name}_expected.npz') as expected:
    want = dict(expected)
  assert shapes(params) == model_shapes(model)
  blocks, logits = forward(model, params, want['images'])
  unit = want.get('cls', np.ones(2) * [-1, 1])  # ViTModel has no logits
  assert blocks.shape == want['blocks'].shape
  assert error(blocks, want['blocks'], unit) < 1e-4
  if 'dist' in want:
    assert error(logits.cls, want['cls'], unit) < 1e-4
    assert error(logits.dist, want['dist'], unit) < 1e-4
  elif 'cls' in want:
    # hf_deit has a distillation token without a head.
    assert error(logits.total, want['cls'], unit) < 1e-4


@pytest.mark.parametrize('name, names', [
    ('hf_vit', 'vit.encoder.layer.2.attention.attention.{}.bias'),
    ('augreg', 'Transformer/encoderblock_2/'
               'MultiHeadDotProductAttention_1/{}/bias')])
def test_biases_of_q_k_and_v_in_order(name, names):
  # Softmax does not see the keys' bias: outputs cannot tell where it is.
  file = weights.read(path(name))
  want = [file.tensors[names.format(part)].ravel()
          for part in ('query', 'key', 'value')]
  params = weights.load(golden_model(name), file, KEY)
  got = params['backbone']['encoders']['qkv']['bias'][2]
  np.testing.assert_array_equal(got, np.concatenate(want))


def test_scanned_and_nested_npz_is_the_same(tmp_path):
  tensors = weights.read(path('big_vision')).tensors
  stem = 'params/Transformer/encoderblock'
  scanned = {'opt/step': np.zeros(())}
  for name, x in tensors.items():
    if name.startswith(f'{stem}_0'):
      rest = name.removeprefix(f'{stem}_0')
      scanned[stem + rest] = np.stack(
          [tensors[f'{stem}_{i}{rest}'] for i in range(3)])
    elif not name.startswith(stem):
      scanned[name] = x
  np.savez(tmp_path / 'a.npz', **scanned)
  same(weights.load(golden_model(''), tmp_path / 'a.npz', KEY),
       weights.load(golden_model(''), path('big_vision'), KEY))


def same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize('distillation', [False, True])
def test_round_trip_is_exact(tmp_path, distillation):
  model = tiny.model(distillation=distillation)
  params = tiny.params(model)
  weights.save(tmp_path / 'new' / 'a.safetensors', model, params)
  same(weights.load(model, tmp_path / 'new' / 'a.safetensors', KEY), params)


@pytest.mark.nightly
def test_one_file_for_any_number_of_fixed_encoders(tmp_path):
  model = tiny.model(num_fixed=2)
  params = tiny.params(model)
  weights.save(tmp_path / 'a.safetensors', model, params)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
  want = model.apply({'params': params['backbone']}, np.float32(images)).total
  for num_fixed in (1, 2, 3):
    other = model.copy(num_fixed=num_fixed)
    got = weights.load(other, tmp_path / 'a.safetensors', KEY)
    actions = models.Actions(*map(np.ones, plan.num_layers(other)))
    logits = adavit_jax.forward(other, got, np.float32(images), actions,
                                mode='static')
    np.testing.assert_allclose(logits.total, want, atol=1e-5)


@pytest.mark.nightly
def test_added_exits_are_not_in_the_file(tmp_path):
  model = tiny.model(exits=((1, 'mlp'), (2, 'vit')))
  params = tiny.params(model)
  assert 'heads' in params
  weights.save(tmp_path / 'a.safetensors', model, params)
  plain = model.copy(exits=())
  for fits, groups in ((plain, {'backbone'}), (model, {'backbone', 'heads'})):
    got = weights.load(fits, tmp_path / 'a.safetensors', KEY)
    assert set(got) == groups and shapes(got) == model_shapes(fits)
    same(got['backbone'], params['backbone'])
  same(got['heads'], models.init_params(model, KEY)['heads'])


def test_a_saved_model_keeps_its_number_of_heads(tmp_path):
  """No tensor shows it, and with another one all logits would be wrong."""
  model = tiny.model(num_heads=4)
  weights.save(tmp_path / 'a.safetensors', model, tiny.params(model))
  with pytest.raises(ValueError, match=r'a.safetensors .*num_heads=4 .*\b2\b'):
    weights.load(model.copy(num_heads=2), tmp_path / 'a.safetensors', KEY)


def test_exported_names_and_arrays_are_timms(tmp_path):
  model = golden_model('timm_deit_distilled')
  params = weights.load(model, path('timm_deit_distilled'), KEY)
  weights.save(tmp_path / 'a.safetensors', model, params)
  want = weights.read(path('timm_deit_distilled')).tensors
  same(weights.read(tmp_path / 'a.safetensors').tensors, want)


def test_what_cannot_be_saved(tmp_path):
  model = tiny.model()
  for params in ({}, tiny.params(model)['backbone']):
    with pytest.raises(ValueError, match='backbone/cls: None'):
      weights.save(tmp_path / 'a.safetensors', model, params)
  with pytest.raises(ValueError, match=r'a\.pth.*\.safetensors'):
    weights.save(tmp_path / 'a.pth', model, tiny.params(model))


def test_half_precision_becomes_float32(tmp_path):
  file = weights.read(path('timm_vit'))
  half = {k: x.astype(jnp.bfloat16) for k, x in file.tensors.items()}
  model = golden_model('timm_vit')
  got = weights.load(model, file._replace(tensors=half), KEY)
  got = got['backbone']['cls']
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, np.float32(half['cls_token']))


def test_other_classes_get_the_models_own_new_heads():
  name = 'hf_deit_teacher'
  model = golden_model(name, num_classes=7)
  got = weights.load(model, path(name), jax.random.key(3))['backbone']
  want = models.init_params(model, jax.random.key(3))['backbone']
  for head in ('head', 'head_dist'):
    same(got[head], want[head])
  kept = weights.load(golden_model(name), path(name), KEY)
  same(got['encoders'], kept['backbone']['encoders'])


def test_layer_before_the_head_goes_with_the_head():
  file = weights.read(path('augreg'))
  file.tensors['pre_logits/kernel'] = np.eye(16, dtype=np.float32)
  with pytest.raises(ValueError, match=r'pre_logits/kernel \[16, 16\]'):
    weights.load(golden_model('augreg'), file, KEY)
  weights.load(golden_model('augreg', num_classes=7), file, KEY)


def test_the_key_is_one_key():
  for read in (weights.init_params,
               lambda model, key: weights.load(model, path('timm_vit'), key)):
    with pytest.raises(ValueError, match='^key=0 '):
      read(golden_model('timm_vit'), 0)


def test_create_with_weights(monkeypatch):
  model = golden_model('timm_vit', weights=str(path('timm_vit')))
  same(adavit_jax.init_params(model, KEY),
       weights.load(golden_model('timm_vit'), path('timm_vit'), KEY))
  monkeypatch.setattr(models, 'init_params', lambda model, key: (model, key))
  for plain in (golden_model(''), models.create('ravit_cifar_patch4_32')):
    assert adavit_jax.init_params(plain, 'key') == (plain, 'key')


@pytest.mark.parametrize('num_out', [5, 12])
def test_positions_equal_torchs(num_out):
  with np.load(GOLDEN / 'positions_expected.npz') as golden:
    got = positions.resize(golden['7'], 1, num_out)
    np.testing.assert_allclose(got, golden[str(num_out)], atol=2e-6)
  np.testing.assert_allclose(positions.interpolation(7, 7), np.eye(7),
                             atol=1e-15)


def test_halfway_between_four_points():
  """At distances 0.5 and 1.5, a = -0.75 weighs 19/32 and -3/32."""
  np.testing.assert_allclose(
      positions.interpolation(8, 4)[1],
      np.float64([0, -3, 19, 19, -3, 0, 0, 0]) / 32, atol=1e-12)


def test_resize_keeps_prefix_and_axes():
  grid = np.random.default_rng(0).normal(size=(1, 2 + 9, 4))
  got = positions.resize(grid, 2, 5)
  np.testing.assert_array_equal(got[:, :2], np.float32(grid[:, :2]))
  m = positions.interpolation(3, 5)
  want = sum(m[1, i] * m[4, j] * grid[0, 2 + 3 * i + j]
             for i in range(3) for j in range(3))
  np.testing.assert_allclose(got[0, 2 + 5 * 1 + 4], want, rtol=1e-5)


def test_load_resizes_positions():
  model = golden_model('timm_deit_distilled', image_size=20)
  file = weights.read(path('timm_deit_distilled'))
  got = weights.load(model, file, KEY)['backbone']['pos_embedding']
  np.testing.assert_array_equal(
      got, positions.resize(file.tensors['pos_embed'], 2, 5))


@pytest.mark.parametrize('name, distilled', [
    ('vit_tiny_patch16_224', False), ('vit_small_patch16_224', False),
    ('deit_tiny_patch16_224', False), ('deit_tiny_distilled_patch16_224', True)
])
def test_live_against_timm(tmp_path, name, distilled):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm')
  golden = pytest.importorskip('make_golden_weights')
  home = golden.randomize(timm.create_model(name), seed=len(name))
  torch.save({'model': home.state_dict()}, tmp_path / 'a.pth')
  model = models.create(name, weights=str(tmp_path / 'a.pth'))
  assert model.distillation == distilled
  params = adavit_jax.init_params(model, KEY)
  images = np.random.default_rng(0).normal(size=(2, 224, 224, 3))
  images = images.astype(np.float32)
  want, mean = golden.forward(home, home.blocks, images)
  blocks, logits = forward(model, params, images)
  mean = mean.numpy()
  error_blocks = error(blocks, want, mean)
  error_logits = error(logits.total, mean, mean)
  print(name, error_blocks, error_logits)
  assert error_blocks < 1e-4
  assert error_logits < 1e-4
  weights.save(tmp_path / 'a.safetensors', model, params)
  with torch.no_grad():
    for x in home.parameters():
      x.zero_()
  timm.models.load_checkpoint(home, str(tmp_path / 'a.safetensors'))
  _, again = golden.forward(home, home.blocks, images)
  np.testing.assert_array_equal(again.numpy(), mean)


@pytest.mark.parametrize('side, distilled', [(24, False), (10, True)])
def test_live_positions_equal_timms(side, distilled):
  torch = pytest.importorskip('torch')
  layers = pytest.importorskip('timm.layers')
  n = 1 + distilled
  x = np.random.default_rng(0).normal(size=(1, n + 14 * 14, 64))
  x = x.astype(np.float32)
  want = layers.resample_abs_pos_embed(
      torch.from_numpy(x), [side, side], num_prefix_tokens=n, antialias=False)
  np.testing.assert_allclose(positions.resize(x, n, side), want.numpy(),
                             atol=1e-5)
