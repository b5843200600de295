"""Thresholds by cross-validation: what they lose on other images."""

import numpy as np
import pytest

from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence
from adavit_jax.exits import cross_validation

MACS = np.array([1., 2., 3., 4.])


def _images(rng, n):
  """Exits of rising accuracy, whose confidence is their chance of success."""
  ease = rng.normal(size=n)
  chance = 1 / (1 + np.exp(-np.array([[0.], [1.], [1.5], [2.]]) - 1.5 * ease))
  chance = chance.clip(0.02, 0.98)
  return chance, rng.uniform(size=chance.shape) < chance


def test_less_is_lost_on_other_images_than_by_the_best_thresholds():
  rng = np.random.default_rng(0)
  test = _images(rng, 20_000)
  best, crossed = [], []
  for _ in range(4):
    held = _images(rng, 80)
    for found, kept in (
        (calibrate.calibrate(*held, MACS, same_accuracy=True), best),
        (cross_validation.losing_at_most(*held, MACS, lost=0.), crossed)):
      got = calibrate.evaluate(*test, MACS, found.thresholds)
      kept.append(test[1][-1].mean() - got.accuracy)
  assert np.mean(best) > 0.04 > 0.02 > np.mean(crossed)


def test_more_may_be_lost_for_fewer_macs():
  held = _images(np.random.default_rng(1), 120)
  found = [cross_validation.losing_at_most(*held, MACS, lost=lost)
           for lost in (0., 0.1, 1.)]
  macs = [x.macs for x in found]
  assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3
  want = calibrate.evaluate(*held, MACS, found[1].thresholds)
  assert (found[1].accuracy, found[1].macs) == (want.accuracy, want.macs)


def test_exits_without_worth_and_exits_without_loss():
  rng = np.random.default_rng(2)
  chance, correct = rng.uniform(size=(4, 100)), np.zeros((4, 100))
  correct[-1] = 1
  never = cross_validation.losing_at_most(chance, correct, MACS, lost=0.)
  assert never.macs == 10 and (never.thresholds == confidence.NEVER).all()
  same = cross_validation.losing_at_most(
      chance, np.ones((4, 100)), np.tile(MACS[:, None], 100), lost=0.)
  assert same.macs == 1 and same.shares.tolist() == [1, 0, 0, 0]


def test_few_images_and_a_single_exit():
  one = _images(np.random.default_rng(3), 1)
  found = cross_validation.losing_at_most(*one, MACS, lost=1.)
  assert (found.thresholds == confidence.NEVER).all() and found.macs == 10
  two = cross_validation.losing_at_most(
      np.full((4, 2), 0.5), np.ones((4, 2)), MACS, lost=0.)
  assert two.macs == 1
  last = cross_validation.losing_at_most(
      np.ones((1, 9)), np.ones((1, 9)), MACS[:1], lost=0.)
  assert last.thresholds.shape == (0,) and last.macs == 1


def test_smoothing_is_increasing_and_linear_between_steps():
  chance = np.array([[0.1, 0.2, 0.2, 0.4, 0.5], [0.] * 5])
  scores = np.array([[0., 1., 0., 0., 1.], [1., 1., 1., 0., 1.]])
  smooth = cross_validation.smoothed(chance, scores)
  # The closest steps are -1 at rank 0.5, -0.5 at rank 2, and 0 at rank 4.
  change = np.interp([0.5, 2, 2, 3.5, 4.5], [0.5, 2, 4], [-1, -0.5, 0])
  np.testing.assert_allclose(smooth[0], scores[1] + change)
  np.testing.assert_array_equal(smooth[1], scores[1])
  falling = cross_validation.smoothed(
      np.array([[0.1, 0.2], [0., 0.]]), np.array([[1., 0.], [1., 1.]]))
  np.testing.assert_allclose(falling[0], [0.5, 0.5])


@pytest.mark.parametrize('lost', [-0.1, float('nan')])
def test_a_negative_loss(lost):
  with pytest.raises(ValueError, match='^lost='):
    cross_validation.losing_at_most(
        *_images(np.random.default_rng(0), 10), MACS, lost=lost)
