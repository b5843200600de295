"""Losses, predictions and scores of both tasks against NumPy."""

import types

from adavit_jax import data
from adavit_jax.train import tasks
import jax.numpy as jnp
import numpy as np
import pytest

E, B, K = 3, 8, 5
RNG = np.random.default_rng(0)
REGRESSION = tasks.Regression(mean=10., std=4., unit='degrees')


def test_create():
  dataset = types.SimpleNamespace(num_classes=K, target=None)
  assert tasks.create(dataset) == tasks.Classification(K)
  assert tasks.create(dataset).num_outputs == K
  dataset = types.SimpleNamespace(
      num_classes=0, target=data.Target(10., 4., 'degrees'))
  assert tasks.create(dataset) == REGRESSION
  assert REGRESSION.num_outputs == 1
  for std in (0., -1., np.nan):
    dataset.target = data.Target(10., std, 'degrees')
    with pytest.raises(ValueError, match=f'target.std={std} must be positive'):
      tasks.create(dataset)
  dataset.target = data.Target(10., 4., '')
  with pytest.raises(ValueError, match='target.unit='):
    tasks.create(dataset)


def test_classification():
  task = tasks.Classification(K)
  outputs = RNG.normal(size=(E, B, K), scale=3).astype(np.float32)
  labels = np.arange(B, dtype=np.int32) % K
  outputs[2, np.arange(B), labels] += 5  # the last exit is often right
  p = np.exp(outputs.astype(np.float64))
  p /= p.sum(-1, keepdims=True)

  targets = RNG.dirichlet(np.ones(K), B).astype(np.float32)
  want = -(targets * np.log(p)).sum(-1).mean()
  np.testing.assert_allclose(task.loss(outputs, targets), want, rtol=1e-5)

  want = -np.log(p[:, np.arange(B), labels])
  got = task.loss_of_labels(outputs, labels)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      got.mean(), task.loss(outputs, np.eye(K)[labels]), rtol=1e-6)

  np.testing.assert_array_equal(task.denormalize(outputs), outputs)
  prediction = task.predict(jnp.asarray(outputs))
  np.testing.assert_array_equal(prediction, outputs.argmax(-1))
  score = task.score(prediction, labels)
  right = outputs.argmax(-1) == labels
  np.testing.assert_array_equal(score, right)
  metrics = task.metrics(score)
  assert set(metrics) == {'accuracy'} and 0 < right.mean() < 1
  np.testing.assert_allclose(metrics['accuracy'], right.mean(-1), rtol=1e-6)
  assert prediction.dtype == jnp.int32
  assert {got.dtype, score.dtype, metrics['accuracy'].dtype} == {
      jnp.dtype('float32')}


def test_regression():
  task = REGRESSION
  outputs = RNG.normal(size=(E, B, 1)).astype(np.float32)
  labels = (10 + 4 * RNG.normal(size=B)).astype(np.float32)
  targets = (labels[:, None] - 10) / 4

  want = ((outputs.astype(np.float64) - targets)**2)
  np.testing.assert_allclose(
      task.loss(outputs, targets), want.mean(), rtol=1e-6)
  got = task.loss_of_labels(outputs, labels)
  np.testing.assert_allclose(got, want[..., 0], rtol=1e-4, atol=1e-6)

  in_unit = task.denormalize(outputs)
  assert in_unit.shape == (E, B, 1)
  np.testing.assert_allclose(in_unit, 4 * outputs + 10, rtol=1e-6)
  prediction = task.predict(in_unit)
  np.testing.assert_array_equal(prediction, in_unit[..., 0])
  score = task.score(prediction, labels)
  error = (4. * outputs[..., 0] + 10) - labels
  np.testing.assert_allclose(score, -np.abs(error), rtol=1e-4, atol=1e-5)
  metrics = task.metrics(score)
  assert set(metrics) == {'mae', 'rmse'}
  np.testing.assert_allclose(
      metrics['mae'], np.abs(error).mean(-1), rtol=1e-5)
  np.testing.assert_allclose(
      metrics['rmse'], np.sqrt((error**2).mean(-1)), rtol=1e-5)
  # The loss is the squared rmse in deviations.
  np.testing.assert_allclose(
      task.metrics(score.ravel())['rmse'] / 4,
      np.sqrt(task.loss(outputs, targets)), rtol=1e-5)
  assert {x.dtype for x in (got, in_unit, prediction, score, *metrics.values())
          } == {jnp.dtype('float32')}


def test_bfloat16_outputs_are_denormalized_in_float32():
  outputs = jnp.bfloat16([[1.0078125]])
  task = tasks.Regression(mean=1000., std=100., unit='g')
  assert task.denormalize(outputs) == 1100.78125
  assert task.score(task.predict(task.denormalize(outputs)),
                    np.float32([1100.])) == -0.78125
