"""Losses against NumPy in float64."""

import types

from adavit_jax.models.backbone import Logits
from adavit_jax.train import losses
from adavit_jax.train import training_pass
from adavit_jax.train.phases import joint
from adavit_jax.train.step import Batch
import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, K = 4, 4


def _log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture(scope='module')
def logits():
  """Student and teacher, [2, B, K], and targets [B, K] that sum to 1."""
  rng = np.random.default_rng(0)
  targets = rng.uniform(size=(B, K)).astype(np.float32)
  student, teacher = rng.normal(size=(2, B, K), scale=2).astype(np.float32)
  return student, teacher, targets / targets.sum(-1, keepdims=True)


def test_cross_entropy(logits):
  student, teacher, targets = logits
  ce = lambda x: -(targets * _log_softmax(x)).sum(-1).mean()
  got = losses.cross_entropy(student, targets)
  np.testing.assert_allclose(got, ce(student), rtol=1e-5)
  both = losses.head_cross_entropy(Logits(student, teacher), targets)
  np.testing.assert_allclose(both, (ce(student) + ce(teacher)) / 2, rtol=1e-5)
  one = losses.head_cross_entropy(Logits(student, None), targets)
  np.testing.assert_allclose(one, ce(student), rtol=1e-5)
  pair = Logits(student, teacher)
  half = losses.head_cross_entropy(pair._replace(aux=Logits(student)), targets)
  np.testing.assert_allclose(half, (both + one) / 2, rtol=1e-6)
  layers = losses.cross_entropy(np.stack([student, teacher]), targets)
  np.testing.assert_allclose(layers, (ce(student) + ce(teacher)) / 2, rtol=1e-5)


@pytest.mark.parametrize('temperature', [1., 3.])
def test_soft_distillation_is_kl_times_t_squared(logits, temperature):
  student, teacher, _ = logits
  log_p, log_q = (_log_softmax(x / temperature) for x in (teacher, student))
  want = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
  got = losses.distillation(student, teacher, temperature=temperature)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(
      losses.distillation(teacher, teacher, temperature=temperature), 0,
      atol=1e-6)


def test_hard_distillation_asks_for_the_teachers_decision(logits):
  student, teacher, _ = logits
  want = -_log_softmax(student)[np.arange(B), teacher.argmax(-1)].mean()
  got = losses.distillation(student, jnp.asarray(teacher), hard=True)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_representation_is_relative(logits):
  student, teacher, _ = logits
  want = ((student - teacher)**2).sum() / (teacher**2).sum()
  got = losses.representation(student[None], teacher[None])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_representation_is_computed_in_float32():
  rng = np.random.default_rng(1)
  teacher = rng.normal(size=(2, 3, 8))
  tokens = [jnp.asarray(x, jnp.bfloat16)
            for x in (teacher + 3e-2 * rng.normal(size=(2, 3, 8)), teacher)]
  student, teacher = (np.asarray(x, np.float64) for x in tokens)
  want = ((student - teacher)**2).mean() / (teacher**2).mean()
  got = losses.representation(*tokens)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('loss', [losses.distillation, losses.representation])
def test_teachers_get_no_gradient(logits, loss):
  student, teacher, _ = logits
  grad = jax.grad(loss, argnums=(0, 1))(student, teacher)
  assert np.abs(grad[0]).max() > 0
  np.testing.assert_array_equal(grad[1], 0)


def test_untaught_distillation_head_learns_from_the_labels(
    logits, monkeypatch):
  """The loss of figure 3B's path without its teacher."""
  first, second, targets = logits
  out = training_pass.Finish(Logits(first, second), [], None, {})
  monkeypatch.setattr(training_pass, 'finish', lambda *_: out)
  system = types.SimpleNamespace(exits=(), weights=())
  c = types.SimpleNamespace(distill=0., representation=0.)
  batch = Batch(None, targets, targets.argmax(-1))
  loss, _ = joint.path_loss(system, c, None, None, None, batch, None)
  ce = [-(targets * _log_softmax(x)).sum(-1).mean() for x in (first, second)]
  np.testing.assert_allclose(loss, np.mean(ce), rtol=1e-5)
