"""What DVT's transformers reuse, and its stems, against NumPy in float64."""

import math

from adavit_jax import models
from adavit_jax.models import dvt_reuse
from adavit_jax.models import t2t
from adavit_jax.models import upsample
from adavit_jax.models.stem import PatchStem
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dvt
import pytest
import tiny

CLOSE = dict(rtol=0, atol=1e-6)
GRIDS = [(7, 10), (10, 14), (3, 5)]


def _random(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape)


@pytest.mark.parametrize('old, new', [*GRIDS, (4, 8), (5, 5)])
def test_a_matrix_is_nearest_then_averages(old, new):
  u = upsample.matrix(old, new)
  assert u.shape == (new, old)
  np.testing.assert_allclose(u.sum(1), 1)
  x = _random(old, old)
  np.testing.assert_allclose(
      u @ x @ u.T, numpy_dvt.adaptive_average(
          numpy_dvt.nearest(x, 2 * old), new), atol=1e-14)


def test_matrices_of_the_paper_by_hand():
  rows = {0: {0: 1}, 1: {0: 1 / 2, 1: 1 / 2}, 2: {1: 2 / 3, 2: 1 / 3},
          7: {4: 1 / 3, 5: 2 / 3}, 9: {6: 1}}
  for i, row in rows.items():
    want = np.zeros(7)
    want[list(row)] = list(row.values())
    np.testing.assert_allclose(upsample.matrix(7, 10)[i], want, atol=1e-15)
  np.testing.assert_allclose(
      upsample.matrix(10, 14)[11], np.eye(10)[7] / 3 + np.eye(10)[8] * 2 / 3)


@pytest.mark.parametrize('old, new', GRIDS)
def test_features_follow_the_steps(old, new):
  x = _random(2, 1 + old * old, 3)
  got = jax.jit(lambda x: upsample.features(x, old, new))(jnp.float32(x))
  np.testing.assert_allclose(got, numpy_dvt.features(x, new), **CLOSE)
  assert not np.any(got[:, 0])


@pytest.mark.parametrize('old, new', GRIDS)
def test_relations_follow_the_steps(old, new):
  x = _random(1, 2, 1 + old * old, 1 + old * old)
  got = jax.jit(lambda x: upsample.relations(x, old, new))(jnp.float32(x))
  np.testing.assert_allclose(got, numpy_dvt.relations(x, new), **CLOSE)


def test_relations_are_transformed_across_all_encoders():
  module = dvt_reuse.Relations()
  x = np.float32(_random(2, 3, 2, 5, 5))  # 3 encoders of 2 heads
  params = module.init(jax.random.key(0), x)['params']
  assert sum(a.size for a in jax.tree.leaves(params)) == 6 * 18 * 2 + 18 + 6
  bound = max(np.abs(a).max() for a in jax.tree.leaves(params['fc1']))
  assert 0.8 * 6 ** -0.5 < bound <= 6 ** -0.5
  got = jax.jit(lambda p, x: module.apply({'params': p}, x))(params, x)
  want = numpy_dvt.convolutions(
      np.float64(x).reshape(2, 6, 5, 5), numpy_dvt._float64(params))
  np.testing.assert_allclose(got.reshape(2, 6, 5, 5), want, **CLOSE)


@pytest.mark.parametrize('window', [(3, 2, 1), (4, 3, 0), (5, 2, 3)])
def test_windows_are_those_of_unfold(window):
  x = _random(2, 9, 9, 2)
  got = t2t.unfold(jnp.float32(x), *window)
  np.testing.assert_array_equal(
      got, np.float32(numpy_dvt.unfold(x, *window)))


def test_windows_of_the_paper_give_its_grids():
  assert t2t.sides(224, (14, 8, 3)) == [28, 14, 7]
  assert t2t.sides(224, (11, 6, 5)) == [38, 19, 10]
  assert t2t.sides(224, (7, 4, 2)) == [56, 28, 14]


def test_a_performer_is_its_formula():
  module = t2t.Performer()
  x = np.float32(_random(2, 6, 10))
  params = jax.device_get(
      jax.jit(module.init)(jax.random.key(0), x))['params']
  w = params['w']
  np.testing.assert_allclose(w @ w.T, 32 * np.eye(32), atol=1e-4)
  rng = np.random.default_rng(1)
  params = {**jax.tree.map(lambda a: np.float32(
      rng.normal(size=a.shape, scale=0.1)), params), 'w': w}
  loss = lambda p: (module.apply({'params': p}, x) ** 2).sum()
  got, grads = jax.jit(lambda p: (
      module.apply({'params': p}, x), jax.grad(loss)(p)))(params)
  want = numpy_dvt.performer(np.float64(x), numpy_dvt._float64(params), 1e-5)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  frozen = grads.pop('w')
  assert not np.any(frozen)
  assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_exponents_of_a_performer_have_full_precision():
  """Products in float32 are rounded on accelerators otherwise."""
  x, w = jnp.ones((1, 6, t2t.WIDTH), jnp.bfloat16), jnp.ones((2, t2t.WIDTH))
  program = jax.jit(t2t.linear_attention).lower(x, x, x, w).as_text()
  exact = [line for line in program.splitlines()
           if 'precision = [HIGHEST, HIGHEST]' in line]
  assert len(exact) == 2  # queries and keys
  assert all('bf16' not in line for line in exact)


def test_sinusoids_by_hand():
  got = t2t.sinusoids(4, 6)
  want = [[f(p / 10000 ** (2 * i / 6)) for i in range(3)
           for f in (math.sin, math.cos)] for p in range(4)]
  np.testing.assert_allclose(got[0], want, atol=1e-7)
  assert got.shape == (1, 4, 6) and got.dtype == np.float32


def test_patches_that_overlap_the_border():
  stem = PatchStem(4, 3, padding=2)  # 7 pixels: windows at -2, 1, 4
  images = _random(2, 7, 7, 1)
  params = jax.jit(stem.init)(jax.random.key(0), jnp.float32(images))['params']
  got = jax.jit(stem.apply)({'params': params}, jnp.float32(images))
  want = numpy_dvt.patches(images, numpy_dvt._float64(params), 3, 2)
  assert got.shape == (2, 9, 4)
  np.testing.assert_allclose(got, want, **CLOSE)


def model(**overrides):
  return models.create('dvt_cifar_32', **{**dict(
      image_size=12, channels=1, grids=(2, 3, 4), width=8, depth=2, num_heads=2,
      num_classes=3, stem='patch'), **overrides})


def images(n=3, size=12):
  return np.float32(np.random.default_rng(0).normal(size=(n, size, size, 1)))


@pytest.mark.parametrize('overrides', [
    *(pytest.param(overrides, marks=pytest.mark.nightly) for overrides in (
        dict(), dict(reuse_relations=False),
        dict(grids=(2, 3), reuse_features=False))),
    dict(grids=(2, 3), image_size=24, stem='t2t',
         windows=((3, 3, 0), (5, 2, 1)))])
def test_the_whole_model_follows_the_steps(overrides):
  m = model(**overrides)
  params, x = tiny.params(m), images(size=m.image_size)
  got = jax.jit(lambda p, x: m.apply({'params': p}, x))(params['backbone'], x)
  want = numpy_dvt.logits(m, params, np.float64(x))
  assert got.shape == (len(m.grids), 3, 3)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
