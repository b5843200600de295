"""The search for thresholds against every combination of them."""

from adavit_jax.exits import calibrate as calibrate_lib
from adavit_jax.exits import held_out
from adavit_jax.exits import threshold_search
import numpy as np
import pytest

MACS = (10., 20., 40., 40.)


def _data(num_exits, n, seed):
  """Exits that get better, and confidences that know a little of it."""
  rng = np.random.default_rng(seed)
  ahead = (np.linspace(-.5, 1., num_exits)[:, None] - rng.normal(size=n)
           + .5 * rng.normal(size=(num_exits, n)))
  return ahead + .5 * rng.normal(size=ahead.shape), ahead > 0


def _every(confidence, values):
  """Total value under every combination of useful thresholds."""
  total = values[-1]  # [..., n], an axis for each exit
  for row, value in reversed(list(zip(confidence, values[:-1]))):
    leaves = row > np.append(-np.inf, row)[:, None]
    leaves = leaves.reshape(len(leaves), *(total.ndim - 1) * [1], len(row))
    total = np.where(leaves, value, total)
  return total.sum(-1).ravel()


def _missed(confidence, score, macs):
  """What calibration falls short of the optimum, target by target.

  Returns:
    (score too low [9] at given MACs, MACs too many [s], as a share, at each
    score that can be reached).
  """
  n = score.shape[1]
  stages = macs if macs.ndim == 2 else np.tile(macs[:, None], n)
  all_scores = _every(confidence, score.astype(float))
  all_macs = _every(confidence, np.cumsum(stages, 0))
  low, many = [], []
  for target in np.linspace(all_macs.min(), all_macs.max(), 9):
    got = calibrate_lib.calibrate(confidence, score, macs, max_macs=target / n)
    assert got.macs * n <= target * (1 + 1e-9)
    low.append(all_scores[all_macs <= target].max() - got.accuracy * n)
  for target in np.unique(all_scores):
    got = calibrate_lib.calibrate(
        confidence, score, macs, min_accuracy=target / n)
    assert got.accuracy * n >= target - 1e-6
    many.append(got.macs * n / all_macs[all_scores >= target].min() - 1)
  return np.array(low), np.array(many)


@pytest.mark.parametrize('num_exits, n, seeds', [(2, 30, 2), (3, 8, 12),
                                                 (3, 40, 2)])
def test_up_to_three_exits_are_exact(num_exits, n, seeds):
  for seed in range(seeds):
    for missed in _missed(*_data(num_exits, n, seed),
                          np.array(MACS[:num_exits])):
      np.testing.assert_allclose(missed, 0, atol=1e-9)


def test_three_exits_are_exact_for_errors_and_for_ties():
  rng = np.random.default_rng(0)
  confidence, _ = _data(3, 8, 0)
  for missed in _missed(confidence, -rng.random((3, 8)), np.array(MACS[:3])):
    np.testing.assert_allclose(missed, 0, atol=1e-9)
  confidence, correct = _data(3, 12, 1)
  for missed in _missed(confidence.round(), correct, np.array(MACS[:3])):
    np.testing.assert_allclose(missed, 0, atol=1e-9)


def test_three_exits_are_exact_for_images_of_different_cost():
  macs = np.random.default_rng(0).integers(1, 9, (3, 8)).astype(float)
  for missed in _missed(*_data(3, 8, 0), macs):
    np.testing.assert_allclose(missed, 0, atol=1e-9)


def test_four_exits_come_close():
  """They meet every target, and few of 3 x 9 and more are not the best."""
  pairs = [_missed(*_data(4, 8, seed), np.array(MACS)) for seed in range(3)]
  low, many = map(np.concatenate, zip(*pairs))
  assert low.max() < 1 + 1e-9, 'one image at most'
  assert (low > 1e-9).mean() < .05 and (many > 1e-9).mean() < .05
  assert many.mean() < .01


def test_more_images_than_are_exhausted_come_close(monkeypatch):
  confidence, correct = _data(3, 400, 0)
  images = held_out.HeldOut(confidence, correct, MACS[:3])
  exact, best, spent = threshold_search.frontier(images)
  np.testing.assert_array_equal(
      np.transpose([images.totals(t) for t in exact]), [best, spent])
  monkeypatch.setattr(threshold_search, '_EXHAUSTIVE', 0)
  _, score, macs = threshold_search.frontier(images)
  for near in (score, macs):
    assert (np.diff(near) > 0).all()
  at = np.searchsorted(macs, spent, side='right') - 1
  short = best - score[at]
  assert short.min() >= 0 and short.max() <= 2 and short.mean() < .2


def test_every_exit_is_used_where_that_is_best():
  """An image for each of 5 exits, right and sure there and nowhere else."""
  confidence = np.repeat(np.eye(5), 3, axis=1)
  confidence += np.random.default_rng(0).uniform(0, .1, confidence.shape)
  got = calibrate_lib.calibrate(
      confidence, np.repeat(np.eye(5), 3, axis=1), np.ones(5), min_accuracy=1)
  np.testing.assert_allclose(got.shares, .2)
  assert got.accuracy == 1 and got.macs == 3


def test_fewer_thresholds_of_the_first_of_three_exits():
  """Every point is one that is reached; none is much worse."""
  images = held_out.HeldOut(*_data(3, 200, 0), np.array(MACS[:3]))
  thresholds, score, macs = threshold_search.frontier(images, 20)
  for t, *found in zip(thresholds, score, macs):
    assert found == pytest.approx(list(images.totals(t)))
  assert (np.diff(score) > 0).all() and (np.diff(macs) > 0).all()
  _, best, most = threshold_search.frontier(images)
  for points in zip(best, most):
    assert (score[macs <= points[1] * 1.02]).max() >= points[0] - 4
  assert len(score) < len(best)
