"""Passes of a few images: the whole batch's results, on a CPU alone."""

from adavit_jax.models import encoder
from adavit_jax.models import passes
from adavit_jax.train import mesh as mesh_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _lowered(platform):
  """The program of three passes, lowered for a platform."""
  program = jax.jit(lambda x: passes.on_cpu(jnp.sin, x, 2))
  return program.trace(jnp.ones((6, 3))).lower(
      lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('size, shape', [
    (1, (1, 3)), (4, (3, 3)), (5, (3, 3)), (6, (6, 3)), (9, (6, 3))])
def test_a_pass_has_the_most_images_that_divide_the_batch(size, shape):
  seen = []

  def run(x):
    seen.append(x['a'].shape)
    return x['a'] * x['b'][:, None]

  x = dict(a=jnp.arange(18.).reshape(6, 3), b=jnp.arange(6.))
  np.testing.assert_array_equal(passes.on_cpu(run, x, size), run(x))
  assert shape in seen


def test_a_tpus_program_has_no_loop():
  assert 'while' in _lowered('cpu')
  assert 'while' not in _lowered('tpu')


def test_attention_of_many_tokens_is_that_of_the_formula():
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 2, 2, 257, 3)).astype(np.float32)
  logits = np.einsum('bhnd,bhmd->bhnm', *np.float64([q, k])) / 3 ** 0.5
  weights = np.exp(logits)
  want = weights @ v / weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(encoder.attention(q, k, v), want, atol=1e-5)
  fewer = encoder.attention(q[:, :, :1], k, v)
  np.testing.assert_allclose(fewer, want[:, :, :1], atol=1e-5)


def test_no_device_computes_the_passes_of_others():
  mesh = mesh_lib.make_mesh(2)
  program = jax.jit(lambda x: passes.on_cpu(jnp.sin, x, 2))
  x = jax.ShapeDtypeStruct((8, 3), jnp.float32,
                           sharding=mesh_lib.batch_sharding(mesh))
  assert 'all-gather' not in program.lower(x).compile().as_text()
