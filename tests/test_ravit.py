"""RAViT against NumPy and against itself, on tiny shapes."""

import math

from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models import ravit
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages as stages_lib
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny


def _model(**overrides):
  return models.create('ravit_cifar_patch4_32', **{
      **dict(image_size=16, channels=1, width=8, num_heads=2, mlp_ratio=2.,
             num_classes=3, layers=(1, 2)), **overrides})


def _images(n=3, size=16, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, size, size, channels)).astype(np.float32)


def test_branches_see_the_papers_sizes():
  sizes = lambda m: [m.branch_size(i) for i in range(len(m.layers))]
  assert sizes(models.create('ravit_cifar_patch4_32')) == [16, 32]
  assert sizes(models.create('ravit_tiny_imagenet_patch4_64')) == [16, 32, 64]
  assert sizes(models.create('ravit_imagenet_patch16_224')) == [64, 128, 224]
  fine = models.create('ravit_tiny_imagenet_patch4_64', image_size=72,
                       factors=(1.2 * 1.5, 1.2, 1))
  assert sizes(fine) == [40, 60, 72]


# NumPy twice: in float64, from the formulas.


def _norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def _dense(x, p):
  return x @ p['kernel'] + p['bias']


def _encoder(x, p, heads, msa, mlp):
  """msa, mlp: whether an image runs the branch, [B, 1, 1]."""
  split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
  q, k, v = map(split, np.split(_dense(_norm(x, p['norm1']), p['qkv']), 3, -1))
  a = np.exp(q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]))
  y = (a / a.sum(-1, keepdims=True)) @ v
  x = x + msa * _dense(y.transpose(0, 2, 1, 3).reshape(x.shape), p['proj'])
  y = _dense(_norm(x, p['norm2']), p['fc1'])
  y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
  return x + mlp * _dense(y, p['fc2'])


def _resize(images, size):
  """Pillow's bilinear filter is linear and antialiased."""
  resize = lambda x: np.asarray(Image.fromarray(x).resize(
      (size, size), Image.Resampling.BILINEAR))
  return np.stack([resize(x[..., 0]) for x in images])[..., None]


def _ravit(model, params, images, keep=None):
  """Logits [E, B, K]; keep [2, B, N] of all N encoders, MSA and MLP."""
  params = jax.tree.map(
      lambda x: np.asarray(x, np.float64), params['backbone'])
  if keep is None:
    keep = np.ones((2, len(images), sum(model.layers)))
  keep = iter(np.moveaxis(keep, -1, 0)[..., None, None])  # each [2, B, 1, 1]
  p = model.patch_size
  cls = np.tile(params['cls'], (len(images), 1, 1))
  logits = []
  for i, layers in enumerate(model.layers):
    if not layers:
      continue
    grid = model.branch_size(i) // p
    stem = params['patch_embed' if model.shared_stem else f'patch_embed_{i}']
    x = _resize(images, grid * p).reshape(-1, grid, p, grid, p)
    x = x.transpose(0, 1, 3, 2, 4).reshape(-1, grid * grid, p * p)
    x = x @ stem['proj']['kernel'].reshape(p * p, -1) + stem['proj']['bias']
    x = np.concatenate([cls, x], 1) + params[f'pos_embedding_{i}']
    for layer in range(layers):
      q = jax.tree.map(lambda leaf: leaf[layer], params[f'encoders_{i}'])
      x = _encoder(x, q, model.num_heads, *next(keep))
    cls = x[:, :1]
    logits.append(
        _dense(_norm(cls[:, 0], params[f'norm_{i}']), params[f'head_{i}']))
  return np.stack(logits)


@pytest.mark.parametrize('overrides', [
    pytest.param(dict(), marks=pytest.mark.nightly),
    dict(layers=(1, 0, 1), factors=(2, 1, 1), shared_stem=True),
    pytest.param(dict(layers=(0, 1), num_fixed=0), marks=pytest.mark.nightly),
    dict(image_size=12, layers=(1, 1, 1), factors=(1.5, 1, 1)),
])
def test_ravit_is_its_formulas(overrides):
  model = _model(**overrides)
  params, images = tiny.params(model), _images(size=model.image_size)
  got = jax.jit(lambda p, x: model.apply({'params': p}, x))(
      params['backbone'], images)
  want = _ravit(model, params, images)
  assert got.shape == (len(plan.exits(model)), 3, 3)
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope='module')
def model():
  return _model()


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


def _run(stages, params, images):
  carry, logits = None, []
  for stage in stages:
    carry, y = stage(params, images, carry)
    logits.append(y)
  return jnp.stack(logits)


def test_stages_are_the_model(model, params):
  images = _images()
  want = jax.jit(lambda p, x: model.apply({'params': p}, x))(
      params['backbone'], images)
  for kwargs in (dict(inference=False), dict(),
                 dict(inference=False, unroll=2, remat=True)):
    stages = stages_lib.stages(model, **kwargs)
    got = jax.jit(lambda p, x: _run(stages, p, x))(params, images)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  got = jax.jit(lambda p, x: stages_lib.exit_logits(model, p, x))(
      params, images)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  got = jax.jit(lambda p, x: modes.forward(model, p, x))(params, images)
  np.testing.assert_allclose(got.total, want[-1], rtol=1e-5, atol=1e-5)
  assert got.dist is None


def test_training_runs_the_stages(model, params):
  images = _images()
  def run(params, **kwargs):
    return stages_lib.training(model, params, images, EVAL, **kwargs)
  want = jax.jit(lambda p: model.apply({'params': p}, images))(
      params['backbone'])
  for kwargs in (dict(), dict(unroll=2, remat=True)):
    logits, stats = jax.jit(lambda p: run(p, **kwargs))(params)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    assert stats is None
  first, = jax.jit(lambda p: run(p, num=1)[0])(params)
  np.testing.assert_allclose(first, want[0], rtol=1e-5, atol=1e-5)


def test_detached_stages_have_no_gradient_from_later_exits(model, params):
  """One optimizer then trains all stages, each by its own exit."""
  def grad(detach):
    loss = lambda p: (stages_lib.training(
        model, p, _images(), EVAL, detach=detach)[0][1] ** 2).sum()
    return jax.jit(jax.grad(loss))(params)['backbone']
  attached, detached = grad(False), grad(True)
  for name in attached:
    largest = lambda tree: max(
        np.abs(x).max() for x in jax.tree.leaves(tree[name]))
    assert (largest(attached) > 0) == (name not in ('norm_0', 'head_0')), name
    assert (largest(detached) > 0) == (name.endswith('_1')), name


@pytest.fixture(scope='module', params=[
    pytest.param(0, marks=pytest.mark.nightly), 2])
def steered(request):
  """The policy decides before, behind and inside a branch."""
  return _model(layers=(1, 2, 1), factors=(2, 1, 1), num_fixed=request.param)


def test_modes_drop_layers_inside_the_branches(steered):
  params, images = tiny.params(steered, scale=0.5), _images(n=6)
  num = 4 - steered.num_fixed
  assert plan.num_layers(steered) == (num, num)
  keep = np.ones((2, 6, 4), np.float32)
  keep[:, :, steered.num_fixed:] = np.random.default_rng(3).integers(
      0, 2, (2, 6, num))
  actions = Actions(*keep[:, :, steered.num_fixed:])
  want = _ravit(steered, params, images, keep)[-1]
  assert np.abs(want - _ravit(steered, params, images)[-1]).max() > 0.1

  run = jax.jit(lambda p, x, actions, mode: modes.forward(
      steered, p, x, actions, mode=mode).total, static_argnames='mode')
  close = dict(rtol=2e-4, atol=2e-4)
  for mode in ('masked', 'compact'):
    np.testing.assert_allclose(
        run(params, images, actions, mode), want, **close)
  for i in range(6):
    row = Actions(*(a[i:i + 1] for a in actions))
    got = run(params, images[i:i + 1], row, 'cond')
    np.testing.assert_allclose(got[0], want[i], **close)
  shared = Actions(*(a[0] for a in actions))
  got, dense = jax.jit(lambda p, x: (
      modes.forward(steered, p, x, shared, mode='static').total,
      modes.forward(steered, p, x).total))(params, images)
  np.testing.assert_allclose(got[0], want[0], **close)

  ones = Actions(*np.ones((2, 6, num), np.float32))
  want = _ravit(steered, params, images)[-1]
  for mode in ('masked', 'compact'):
    np.testing.assert_allclose(run(params, images, ones, mode), want, **close)
  np.testing.assert_allclose(dense, want, **close)


def test_images_are_needed_where_a_branch_follows_the_policy():
  last = _model(layers=(1, 2), num_fixed=2)
  assert [plan.rereads_images(last.clone(num_fixed=i)) for i in range(3)] == [
      True, True, False]
  params, images = tiny.params(last), _images()
  ones = Actions(np.ones(1), np.ones(1))
  @jax.jit
  def run(params, images):
    z1 = modes.before_policy(last, params, images)
    return (modes.after_policy(last, params, z1, ones, 'masked').total,
            modes.forward(last, params, images).total)
  got, want = run(params, images)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_carry_is_the_cls_token_and_counts(model, params):
  images = _images()
  first, second = map(jax.jit, stages_lib.stages(model))
  cls, _ = first(params, images, None)
  assert cls.shape == (3, 1, 8)
  _, logits = second(params, images, cls)
  _, other = second(params, images, -cls)
  assert np.abs(logits - other).min() > 1e-3


def test_the_image_reaches_every_branch(model, params):
  first, second = map(jax.jit, stages_lib.stages(model))
  cls, _ = first(params, _images(), None)
  _, logits = second(params, _images(), cls)
  _, other = second(params, _images(seed=1), cls)
  assert np.abs(logits - other).min() > 1e-3


def test_gradients_reach_every_parameter_from_the_last_exit(model, params):
  loss = lambda p: (model.apply({'params': p}, _images())[-1] ** 2).sum()
  grads = jax.jit(jax.grad(loss))(params['backbone'])
  early_exit = {'norm_0', 'head_0'}
  for name, leaves in grads.items():
    largest = max(np.abs(x).max() for x in jax.tree.leaves(leaves))
    assert (largest > 0) == (name not in early_exit), name


@pytest.mark.parametrize('overrides, fields', [
    # The nearest that fit.
    (dict(factors=(1.5, 1)),
     r'factors=.*11 x 11.*patch_size=4.*2 \(8 .*1.33333 \(12 '),
    (dict(image_size=18), 'factors=.* 9 x 9 .*patch_size'),
    (dict(factors=(8, 1)), r'factors=.* 2 x 2 .*: 4 \(4 '),
    (dict(factors=(1, 2)), r'^factors=\(1, 2\)'),
    (dict(factors=(0.5, 0.5)), r'^factors=\(0.5, 0.5\)'),
    (dict(factors=('2', '1')), '^factors='),
    (dict(factors=(float('nan'), 1)), '^factors='),
    (dict(shared_stem='False'), "^shared_stem='False'"),
    (dict(layers=(0, 0)), r'^layers=\(0, 0\)'),
    (dict(layers=(1, -1)), r'^layers=\(1, -1\)'),
    (dict(layers=(1, 1.5)), r'^layers=\(1, 1.5\)'),
    (dict(layers=(1, 2, 3)), r'^layers=\(1, 2, 3\) and factors'),
    (dict(layers=4), '^layers=4'),
    (dict(factors=2.), '^factors=2.0'),
    (dict(width=9), '^num_heads=2 .*width=9'),
    (dict(mlp_ratio=0), '^mlp_ratio=0'),
    (dict(num_fixed=3), '^num_fixed=3'),
    (dict(num_fixed=-1), '^num_fixed=-1'),
    (dict(layers=(0, 1)), '^num_fixed=1'),
    (dict(depth=3), "'depth'.*factors"),
])
def test_what_does_not_fit_is_refused(overrides, fields):
  with pytest.raises(ValueError, match=fields):
    _model(**overrides)


def test_an_absent_branch_may_have_any_size():
  assert len(plan.exits(_model(factors=(1.5, 1), layers=(0, 2)))) == 1


def test_lists_from_json_are_tuples():
  assert _model(layers=[1, 2], factors=[2, 1]) == _model()


def test_wrong_images(model, params):
  images = jnp.zeros((2, 8, 8, 1))
  for run in (lambda: stages_lib.stages(model)[0](params, images, None),
              lambda: modes.forward(model, params, images),
              lambda: model.apply({'params': params['backbone']}, images)):
    with pytest.raises(ValueError, match=r'images.*\[B, 16, 16, 1\]'):
      run()


def test_a_plain_vit_is_one_stage():
  vit = tiny.model()
  params = tiny.params(vit)
  images = _images(size=8)
  stage, = stages_lib.stages(vit)
  (_, logits), want, got = jax.jit(lambda p, x: (
      stage(p, x, None), vit.apply({'params': p['backbone']}, x).total,
      stages_lib.exit_logits(vit, p, x)))(params, images)
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(got, [want], rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  model = _model(dtype='bfloat16')
  params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  images = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
  first, _ = stages_lib.stages(model)
  cls, logits = jax.eval_shape(first, params, images, None)
  assert cls.dtype == jnp.bfloat16 and logits.dtype == jnp.float32


def test_resizing_keeps_constants_and_leaves_the_full_size_alone():
  images = jnp.full((1, 12, 12, 2), 3.)
  np.testing.assert_allclose(ravit.resize(images, 8), 3., rtol=1e-6)
  assert ravit.resize(images, 12) is images


@pytest.mark.parametrize('size', [5, 8, 17])
def test_resizing_is_that_of_jax(size):
  images = np.random.default_rng(0).normal(size=(2, 12, 12, 3))
  images = images.astype(np.float32)
  np.testing.assert_allclose(
      ravit.resize(images, size), jax.image.resize(
          images, (2, size, size, 3), 'linear', antialias=True), atol=1e-5)
