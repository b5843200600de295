"""Shuffle Transformer: its numbers, its windows, its BatchNorm, every mode."""

import functools

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import depthwise
from adavit_jax.models import plan
from adavit_jax.models import shuffle_layers
from adavit_jax.models import windows
from adavit_jax.models.backbone import Context
from adavit_jax.models.backbone import EVAL
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
import efficient
import jax
import jax.numpy as jnp
import numpy as np
import numpy_shuffle
import pytest

GMACS = dict(shuffle_tiny_224='4.673', shuffle_small_224='8.967',
             shuffle_base_224='15.742')


@pytest.mark.parametrize('name', GMACS)
def test_macs_of_the_authors_code(name):
  assert f'{cost.of(models.create(name)).dense / 1e9:.3f}' == GMACS[name]


def test_the_contract_is_kept():
  models.check_backbone(efficient.shuffle(exits=((1, 'cnn_add'),)))


ONE_STAGE = dict(image_size=16, widths=(4,), depths=(2,), heads=(2,))


@pytest.mark.parametrize('num_fixed, overrides, num', [
    (0, ONE_STAGE, 2), pytest.param(0, {}, 4, marks=pytest.mark.nightly),
    pytest.param(1, {}, 2, marks=pytest.mark.nightly)])
def test_modes_agree(num_fixed, overrides, num):
  model = efficient.shuffle(num_fixed=num_fixed, **overrides)
  assert plan.num_layers(model) == (num, num)
  efficient.check_modes(model)


@pytest.mark.nightly
def test_exits_agree_in_every_mode():
  efficient.check_exits(efficient.shuffle(
      num_fixed=1, depths=(2, 4), exits=((1, 'cnn_add'), (2, 'vit'))))


def test_macs_are_those_of_the_program(monkeypatch):
  # The program for CPU has no convolution whose MACs could be counted.
  monkeypatch.setattr(depthwise, 'convolve', depthwise.by_xla)
  efficient.check_macs(efficient.shuffle())


@pytest.mark.nightly
@pytest.mark.parametrize('name', GMACS)
def test_xla_counts_the_same_flops(name, monkeypatch):
  monkeypatch.setattr(depthwise, 'convolve', depthwise.by_xla)
  model = models.create(name)
  groups = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))

  def run(params, images):
    x = modes.embed(model, params, images).x
    x = masked.run(model, params, x, unroll=max(model.depths)).x
    return modes.classify(model, params, x).total

  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  flops = jax.jit(run).lower(groups, image).cost_analysis()['flops']
  np.testing.assert_allclose(flops / 2, cost.of(model).dense, rtol=0.02)


def _float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize('overrides', [
    {}, pytest.param(dict(image_size=24, patch_size=2, window_size=3,
                          depths=(4, 2), heads=(1, 2), kernel_size=5),
                     marks=pytest.mark.nightly)])
def test_folded_and_not_it_equals_loops_over_windows(overrides):
  model = efficient.shuffle(**overrides)
  params, images = efficient.params(model), efficient.images(model, 2)

  @functools.partial(jax.jit, static_argnums=2)
  def run(params, images, folded):
    ctx = EVAL
    if folded:
      params = models.fold(model, params)
    else:
      ctx = Context(stats=params['batch_stats'])
    x, features = modes.embed(model, params, images, ctx).x, []
    for i in range(plan.num_encoders(model)):
      x = masked.run(model, params, x, start=i, stop=i + 1, ctx=ctx).x
      features.append(x)
    return features, model.classify(params['backbone'], x, 0, ctx)[0].total

  found = [run(params, images, folded) for folded in (False, True)]
  for i, image in enumerate(np.float64(images)):
    want = numpy_shuffle.forward(model, _float64(params), image)
    for got in found:
      for a, b in zip((*got[0], got[1]), (*want[0], want[1]), strict=True):
        np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5 * np.std(b))


def test_windows_of_7x7_tokens():
  """As in all models of the paper; plain, shuffled, and where both coincide."""
  rng, d, heads = np.random.default_rng(0), 4, 2
  p = dict(qkv=dict(kernel=rng.normal(size=(d, 3 * d))),
           proj=dict(kernel=rng.normal(size=(d, d)), bias=rng.normal(size=d)),
           table=rng.normal(size=(heads, 169)))
  x = rng.normal(size=(14, 14, d))
  run = jax.jit(lambda p, x: [shuffle_layers.attention(
      len(x), 7, heads, shuffled, p, x.reshape(1, -1, d), EVAL)[0][0]
                              for shuffled in (False, True)])
  for got, shuffled in zip(run(jax.tree.map(jnp.float32, p), jnp.float32(x)),
                           (False, True)):
    want = numpy_shuffle.attention(x, p, heads, 7, shuffled).reshape(-1, d)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  # One window covers the grid.
  x = x[:7, :7].reshape(1, -1, d)
  for shuffled in (False, True):
    np.testing.assert_array_equal(windows.split(x, 7, 7, shuffled), x)


@pytest.mark.parametrize('side, size', [
    (4, 3), pytest.param(2, 7, marks=pytest.mark.nightly)])
def test_depthwise_convolution_and_its_gradients(side, size):
  rng = np.random.default_rng(0)
  x, kernel, weights = (rng.normal(size=shape) for shape in (
      (2, side, side, 3), (size, size, 1, 3), (2, side, side, 3)))

  @functools.partial(jax.jit, static_argnums=2)
  def run(x, kernel, convolve):
    y, vjp = jax.vjp(convolve, x, kernel)
    return y, *vjp(jnp.float32(weights)), depthwise.tap_sums(kernel, side)

  by_taps, by_xla = (run(*map(jnp.float32, (x, kernel)), convolve)
                     for convolve in (depthwise.convolve, depthwise.by_xla))
  want = np.stack([numpy_shuffle.conv(one, kernel, 1, size // 2) for one in x])
  np.testing.assert_allclose(by_taps[0], want, rtol=1e-5, atol=1e-5)
  for a, b in zip(by_taps, by_xla):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  want = numpy_shuffle.conv(np.ones((side, side, 3)), kernel, 1, size // 2)
  np.testing.assert_allclose(by_taps[3], want, rtol=1e-5, atol=1e-5)


def test_the_convolution_is_that_of_the_platform_of_the_program():
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
  program = jax.jit(jax.grad(
      lambda x, kernel: depthwise.convolve(x, kernel).sum(), (0, 1))).trace(
          x, kernel)
  for platform, taps in dict(cpu=True, tpu=False).items():
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert ('stablehlo.while' in text) is taps
    assert ('stablehlo.convolution' in text) is not taps


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  efficient.check_bfloat16(efficient.shuffle(dtype='bfloat16'))


@pytest.mark.parametrize('overrides, field', [
    (dict(patch_size=8), 'patch_size=8'),
    (dict(widths=()), r'widths=\(\)'),
    (dict(widths=(4, 7)), r'heads=\(2, 3\).*7 of widths'),
    (dict(depths=(2,)), r'depths=\(2,\)'),
    (dict(depths=(2, 3)), r'depths=\(2, 3\).*even'),
    (dict(heads=(2, 0)), r'heads=\(2, 0\)'),
    (dict(heads=3), 'heads=3'),
    (dict(window_size=3), 'image_size=16.*24.*window_size=3'),
    (dict(window_size=0), 'window_size=0'),
    (dict(kernel_size=4), 'kernel_size=4'),
    (dict(stem_width=0), 'stem_width=0'),
    (dict(image_size=20), 'image_size=20'),
    (dict(num_fixed=2), 'num_fixed=2'),
])
def test_wrong_attributes(overrides, field):
  with pytest.raises(ValueError, match=field):
    efficient.shuffle(**overrides)
