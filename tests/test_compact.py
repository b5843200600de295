"""Packing the rows of a batch that a branch has to run on."""

import functools

from adavit_jax.runtime import compact
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _run(x):
  # Not row by row through one factor, so that a row in a wrong place shows.
  return jnp.sin(x) * (1 + jnp.arange(x.shape[-1]))


@functools.partial(jax.jit, static_argnames='chunk')
def _residual(x, keep, chunk):
  return compact.residual(_run, x, keep, chunk)


@pytest.mark.parametrize('size', [
    size if size in (1, 2, 3, 7, 8, 9, 16, 17, 33) else
    pytest.param(size, marks=pytest.mark.nightly) for size in range(1, 34)])
def test_only_kept_rows_change(size):
  rng = np.random.default_rng(size)
  x = rng.normal(size=(size, 2, 3)).astype(np.float32)
  chunk = compact.chunk_size(size, 1., 'cpu') if size % 2 else -(-size // 3)
  for probability in (0., 0.2, 0.5, 0.9, 1.):
    keep = (rng.random(size) < probability).astype(np.float32)
    want = np.where(keep[:, None, None] > 0, x + np.asarray(_run(x)), x)
    np.testing.assert_allclose(_residual(x, keep, chunk), want, rtol=1e-6)


@pytest.mark.parametrize('num, chunk', [(0, 4), (3, 4), (7, 4), (9, 9)])
def test_a_branch_may_change_the_first_tokens_alone(num, chunk):
  rng = np.random.default_rng(num)
  x = rng.normal(size=(9, 5, 3)).astype(np.float32)
  keep = rng.permutation(9) < num
  run = lambda x: _run(x)[:, :2]
  got = jax.jit(lambda x, keep: compact.residual(run, x, keep, chunk))(x, keep)
  want = x.copy()
  want[keep, :2] += np.asarray(_run(x))[keep, :2]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert not num or np.abs(got - x).max() > 0.1


@pytest.mark.parametrize('num, chunk', [(0, 4), (3, 4), (7, 4), (9, 9)])
def test_activations_may_be_a_dict_of_which_some_change(num, chunk):
  rng = np.random.default_rng(num)
  x = {name: rng.normal(size=(9, *shape)).astype(np.float32)
       for name, shape in dict(a=(5, 3), b=(4,), c=(2, 2, 3)).items()}
  keep = rng.permutation(9) < num
  # Reads one entry for what is added to another.
  run = lambda x: {'a': _run(x['a'][:, :2]), 'b': x['c'].sum((1, 2, 3))[:, None]
                   * jnp.ones(4)}
  got = jax.jit(lambda x, keep: compact.residual(run, x, keep, chunk))(x, keep)
  assert set(got) == set(x)
  want = jax.tree.map(np.copy, x)
  want['a'][keep, :2] += np.asarray(_run(x['a']))[keep, :2]
  want['b'][keep] += x['c'].sum((1, 2, 3))[keep, None]
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_dropped_rows_are_not_computed():
  """A pass over k rows sees k rows, rounded up to a size, and no others."""
  size, chunk, seen = 24, 8, []

  def run(x):
    jax.debug.callback(lambda x: seen.append(x[:, 0].tolist()), x, ordered=True)
    return x

  x = np.arange(1., size + 1, dtype=np.float32)[:, None]
  keep = np.zeros(size, np.float32)
  keep[[1, 2, 3, 5, 7, 11, 13, 17, 19, 23]] = 1
  f = jax.jit(lambda keep: compact.residual(run, jnp.asarray(x), keep, chunk))
  f(keep)
  jax.effects_barrier()
  assert seen == [[2, 3, 4, 6, 8, 12, 14, 18], [20, 24]]
  seen.clear()
  f(np.zeros(size, np.float32))
  jax.effects_barrier()
  assert seen == []


def test_few_rows_take_a_small_pass():
  seen = []

  def run(x):
    jax.debug.callback(lambda x: seen.append(len(x)), x, ordered=True)
    return x

  f = jax.jit(lambda keep: compact.residual(run, jnp.ones((64, 1)), keep, 64))
  for num, rows in ((1, 2), (2, 2), (3, 8), (9, 16), (57, 64), (64, 64)):
    seen.clear()
    got = f(np.arange(64) < num)
    jax.effects_barrier()
    assert seen == [rows], num
    np.testing.assert_array_equal(got[:, 0], 1 + (np.arange(64) < num))


@pytest.mark.parametrize('chunk, sizes', [
    (1, []), (2, [1]), (4, [1, 2, 3]), (8, list(range(1, 8))),
    (64, [2, *range(8, 65, 8)]), (20, [3, 6, 9, 12, 15, 18, 20])])
def test_pass_sizes_hold_every_remainder(chunk, sizes):
  assert compact.pass_sizes(chunk) == sizes
  assert compact.pass_sizes(256, 2) == [32, 128, 256]


def test_chunk_size_follows_the_work_of_a_row():
  assert compact.chunk_size(256, 44e6, 'cpu') == 8  # ViT-Ti/16 at 224
  assert compact.chunk_size(32, 1e3, 'cpu') == 32
  assert compact.chunk_size(1, 1e3, 'cpu') == 1
  assert compact.chunk_size(256, 1e12, 'tpu') == 1


def test_tangents_are_those_of_masking():
  x = np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3)
  keep = np.float32([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
  masked = lambda x: x + keep[:, None] * _run(x)
  packed = lambda x, keep: compact.residual(_run, x, keep, 4)
  want = jax.jvp(masked, (x,), (np.ones_like(x),))[1]
  got = jax.jit(lambda x, keep: jax.jvp(
      lambda x: packed(x, keep), (x,), (jnp.ones_like(x),))[1])(x, keep)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
