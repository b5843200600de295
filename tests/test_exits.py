"""Confidence measures and calibration against NumPy and brute force."""

import itertools
import json
import math

from adavit_jax.exits import calibrate as calibrate_lib
from adavit_jax.exits import confidence as confidence_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

MACS = {2: (10, 40), 3: (10, 20, 40)}


def test_measures_are_their_definitions():
  logits = np.random.default_rng(0).normal(size=(50, 7), scale=3)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  ordered = np.sort(p, -1)
  want = {'entropy': (p * np.log(p)).sum(-1), 'max_probability': p.max(-1),
          'margin': ordered[:, -1] - ordered[:, -2]}
  assert set(confidence_lib.RULES) == {*want, 'patience', 'agreement'}
  for name in want:
    got, memory = jax.jit(confidence_lib.RULES[name])(jnp.float32(logits), None)
    np.testing.assert_allclose(got, want[name], rtol=2e-5, atol=1e-6)
    assert got.dtype == jnp.float32 and memory is None


def test_measures_at_their_ends():
  sure, unsure = jnp.float32([-jnp.inf, 900., -900.]), jnp.zeros(3)
  ends = {
      confidence_lib.negative_entropy: (0., -math.log(3)),
      confidence_lib.max_probability: (1., 1 / 3),
      confidence_lib.margin: (1., 0.),
  }
  for measure, (top, bottom) in ends.items():
    assert measure(sure) == top
    np.testing.assert_allclose(measure(unsure), bottom, rtol=1e-6)


def test_bfloat16_logits_are_measured_in_float32():
  logits = jnp.bfloat16([1.5, 0.25, -3.])
  want = confidence_lib.negative_entropy(logits.astype(jnp.float32))
  assert confidence_lib.negative_entropy(logits) == want


@pytest.mark.parametrize('name', confidence_lib.RULES)
def test_nan_is_no_confidence(name):
  logits = np.zeros((2, 2, 3), np.float32)  # [E, B, K]
  logits[:, 0, 1] = np.nan
  got = confidence_lib.confidences(confidence_lib.RULES[name], logits)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(np.isnan(got), [[True, False]] * 2)
  leaves = confidence_lib.choose(got, confidence_lib.ALWAYS)
  assert leaves[0] == 1


def test_a_rule_remembers_the_exits_before():
  def rule(logits, memory):
    label = logits.argmax(-1)
    before = jnp.full_like(label, -1) if memory is None else memory
    return (label == before).astype(jnp.float32), label
  logits = jax.nn.one_hot(jnp.array([[0, 1], [0, 2], [1, 2]]), 3)  # [E, B, K]
  got = confidence_lib.confidences(rule, logits)
  np.testing.assert_array_equal(got, [[0, 0], [1, 0], [0, 1]])


def test_images_leave_strictly_above_the_threshold():
  confidence = np.array([[.2, .5, .6, .1], [.9, .9, .3, .3], [0, 0, 0, 0]])
  got = confidence_lib.choose(confidence, [.5, .3])
  np.testing.assert_array_equal(got, [1, 1, 0, 2])
  choose = lambda t: confidence_lib.choose(confidence, t).tolist()
  assert choose(confidence_lib.NEVER) == [2, 2, 2, 2]
  assert choose(confidence_lib.ALWAYS) == [0, 0, 0, 0]
  assert choose([.15, confidence_lib.ALWAYS]) == [0, 0, 0, 1]
  # The paper's 'no EE': no entropy is below 0, however sure the model.
  assert confidence_lib.choose(np.zeros((2, 1)), 0.) == [1]


@pytest.mark.parametrize('thresholds, numbers', [
    ([.1], r'\(1,\).* 3 exits .* 2'),
    ([.1, .2, .3], r'\(3,\).* 3 exits .* 2'),
    ([.1, np.nan], 'nan'), (np.nan, 'nan')])
def test_wrong_thresholds(thresholds, numbers):
  with pytest.raises(ValueError, match=f'^thresholds=.*{numbers}'):
    confidence_lib.choose(np.zeros((3, 5)), thresholds)


def _data(num_exits, n, seed=0, levels=None):
  rng = np.random.default_rng(seed)
  hard = rng.random(n)
  skill = np.linspace(.4, .8, num_exits)[:, None]
  correct = hard + .3 * rng.random((num_exits, n)) < skill * 1.3
  confidence = -hard + .3 * rng.normal(size=(num_exits, n))
  if levels:
    confidence = np.round(confidence * levels) / levels
  return confidence.astype(np.float32), correct


def _every_threshold(confidence, correct, macs):
  """(accuracy, MACs) of every combination of useful thresholds."""
  choices = [[-np.inf, *np.unique(row)] for row in confidence[:-1]]
  total = np.cumsum(macs)
  images = np.arange(confidence.shape[1])
  found = []
  for thresholds in itertools.product(*choices):
    chosen = np.argmax(np.concatenate([
        confidence[:-1] > np.array(thresholds)[:, None],
        np.ones((1, len(images)), bool)]), axis=0)
    found.append((correct[chosen, images].mean(), total[chosen].mean()))
  return np.array(found).T


@pytest.mark.parametrize('levels', [None, 4])  # 4: many ties
def test_two_exits_are_searched_exhaustively(levels):
  confidence, correct = _data(2, 60, levels=levels)
  macs = MACS[2]
  accuracy, spent = _every_threshold(confidence, correct, macs)
  for target in np.linspace(10, 50, 9):
    got = calibrate_lib.calibrate(confidence, correct, macs, max_macs=target)
    assert got.macs <= target
    assert got.accuracy == accuracy[spent <= target].max()
    at_best = accuracy == got.accuracy
    np.testing.assert_allclose(got.macs, spent[at_best].min(), rtol=1e-12)
  for target in np.unique(accuracy):
    got = calibrate_lib.calibrate(
        confidence, correct, macs, min_accuracy=target)
    assert got.accuracy >= target
    np.testing.assert_allclose(
        got.macs, spent[accuracy >= target].min(), rtol=1e-12)
  got = calibrate_lib.calibrate(confidence, correct, macs, same_accuracy=True)
  want = spent[accuracy >= correct[-1].mean()].min()
  np.testing.assert_allclose(got.macs, want, rtol=1e-12)
  best = f'{accuracy.max():g}'
  with pytest.raises(ValueError, match=f'^min_accuracy=1.01 .*{best}$'):
    calibrate_lib.calibrate(confidence, correct, macs, min_accuracy=1.01)


@pytest.mark.parametrize('seed', range(4))
def test_three_exits_come_close_to_every_combination(seed):
  confidence, correct = _data(3, 40, seed)
  accuracy, spent = _every_threshold(confidence, correct, MACS[3])
  for target in (15., 25., 40., 60.):
    got = calibrate_lib.calibrate(
        confidence, correct, MACS[3], max_macs=target)
    best = accuracy[spent <= target].max()
    assert got.macs <= target and best - 2 / 40 <= got.accuracy <= best


def test_a_calibration_says_what_its_thresholds_do():
  confidence, correct = _data(5, 300)
  macs = (1, 2, 3, 4, 5)
  got = calibrate_lib.calibrate(confidence, correct, macs, max_macs=8)
  chosen = confidence_lib.choose(confidence, got.thresholds)
  assert got.accuracy == correct[chosen, np.arange(300)].mean()
  assert got.macs == np.cumsum(macs)[chosen].mean()
  np.testing.assert_array_equal(got.shares, np.bincount(
      chosen, minlength=5) / 300)
  again = calibrate_lib.evaluate(confidence, correct, macs, got.thresholds)
  jax.tree.map(np.testing.assert_array_equal, got, again)


def test_thresholds_keep_a_distance_from_every_image():
  """So that rounding at run time decides alike."""
  confidence, correct = _data(2, 50)
  got = calibrate_lib.calibrate(confidence, correct, MACS[2], max_macs=30)
  gap = np.abs(confidence[0].astype(np.float64) - got.thresholds[0])
  below, above = np.sort(gap)[:2]
  np.testing.assert_allclose(below, above, rtol=1e-9)


def test_the_curve_rises_and_holds_plain_numbers():
  confidence, correct = _data(4, 400)
  macs = (10, 10, 20, 20)
  points = json.loads(json.dumps(
      calibrate_lib.curve(confidence, correct, macs, num=20), allow_nan=False))
  assert set(points[0]) == {'thresholds', 'accuracy', 'macs', 'shares'}
  for a, b in itertools.pairwise(points):
    assert a['accuracy'] < b['accuracy'] and a['macs'] < b['macs']
  assert points[0]['macs'] == 10 and points[0]['shares'] == [1, 0, 0, 0]
  assert points[-1]['accuracy'] >= correct[-1].mean()
  # A point is what calibration finds for its budget.
  middle = points[len(points) // 2]
  again = calibrate_lib.evaluate(
      confidence, correct, macs, middle['thresholds'])
  assert again.accuracy == middle['accuracy'] and again.macs == middle['macs']


def test_scores_may_be_errors_of_a_regression():
  rng = np.random.default_rng(0)
  errors = rng.random((2, 80)) * np.array([[2.], [1.]])
  confidence = -errors + .1 * rng.normal(size=(2, 80))
  score = -errors
  got = calibrate_lib.calibrate(
      confidence, score, MACS[2], min_accuracy=score[-1].mean() - .05)
  accuracy, spent = _every_threshold(confidence, score, MACS[2])
  want = spent[accuracy >= score[-1].mean() - .05].min()
  np.testing.assert_allclose(got.macs, want)
  assert got.shares[0] > .2


def test_one_exit_and_exits_nobody_can_leave_at():
  correct = np.array([[True, False]])
  got = calibrate_lib.calibrate(
      np.zeros((1, 2)), correct, [7], same_accuracy=True)
  assert got.thresholds.shape == (0,) and got.macs == 7 and got.accuracy == .5
  # A rule that needs two exits is unsure at the first whatever the threshold.
  confidence = np.array([[-np.inf] * 4, [1., 2., 3., 4.], [0.] * 4])
  got = calibrate_lib.calibrate(
      confidence, np.ones((3, 4)), [1, 1, 1], same_accuracy=True)
  np.testing.assert_array_equal(got.shares, [0, 1, 0])


@pytest.mark.parametrize('target, fields', [
    (dict(max_macs=9), 'max_macs=9 .* 10 MACs'),
    (dict(max_macs=np.nan), 'max_macs=nan '),
    (dict(min_accuracy=1.01), 'min_accuracy=1.01 '),
    (dict(), 'max_macs=None, min_accuracy=None, same_accuracy=False'),
    (dict(max_macs=20, same_accuracy=True),
     'max_macs=20, min_accuracy=None, same_accuracy=True')])
def test_targets_that_cannot_be_met(target, fields):
  with pytest.raises(ValueError, match=f'^{fields}'):
    calibrate_lib.calibrate(*_data(2, 30), MACS[2], **target)


@pytest.mark.parametrize('confidence, correct, macs', [
    (np.zeros((2, 3)), np.zeros((2, 4)), (1, 2)),
    (np.zeros((2, 3)), np.zeros((2, 3)), (1, 2, 3)),
    (np.zeros((2, 0)), np.zeros((2, 0)), (1, 2)),
    (np.zeros(3), np.zeros(3), (1,))])
def test_shapes_that_do_not_fit(confidence, correct, macs):
  with pytest.raises(ValueError, match=r'^confidences.*\[E, n\]'):
    calibrate_lib.evaluate(confidence, correct, macs, 0.)


def test_nan_is_refused():
  with pytest.raises(ValueError, match='^confidences.*NaN'):
    calibrate_lib.curve(np.full((2, 3), np.nan), np.zeros((2, 3)), (1, 2))
