"""Thresholds for shares of images against loops over the sorted images."""

import math

from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.exits import shares
import numpy as np
import pytest


def _by_loops(confidences, parts):
  """The exits [n] of the images, image by image, most confident first."""
  num_exits, num = confidences.shape
  exits = np.full(num, num_exits - 1)
  left = set(range(num))
  for k in range(num_exits - 1):
    wanted, threshold = math.floor(num * parts[k] + 1e-6), math.inf
    queue = sorted(left, key=lambda i: -confidences[k, i])
    if 0 < wanted <= len(queue):
      threshold = confidences[k, queue[wanted - 1]]
    for i in queue:
      if confidences[k, i] >= threshold:
        exits[i] = k
        left.remove(i)
  return exits


@pytest.mark.parametrize('num_exits, n', [(2, 30), (3, 100), (4, 41)])
@pytest.mark.parametrize('ties', [False, True])
def test_images_leave_as_in_the_loops(num_exits, n, ties):
  rng = np.random.default_rng(n)
  confidences = rng.uniform(0, 1, (num_exits, n)).astype(np.float32)
  if ties:
    confidences = np.round(confidences, 1)
  for parts in shares.geometric(num_exits):
    found = shares.thresholds(confidences, parts)
    np.testing.assert_array_equal(
        confidence_lib.choose(confidences, found),
        _by_loops(confidences, parts))


def test_shares_without_ties_are_met():
  confidences = np.random.default_rng(0).uniform(0, 1, (3, 100))
  found = shares.thresholds(confidences, (.5, .29, .21))
  chosen = confidence_lib.choose(confidences, found)
  np.testing.assert_array_equal(np.bincount(chosen), [50, 29, 21])
  for parts, want in (((0, 0, 1), [0, 0, 100]), ((1, 0, 0), [100, 0, 0]),
                      ((0, 1, 0), [0, 100, 0])):
    chosen = confidence_lib.choose(
        confidences, shares.thresholds(confidences, parts))
    np.testing.assert_array_equal(np.bincount(chosen, minlength=3), want)


def test_the_papers_shares():
  points = shares.geometric(3)
  assert points.shape == (59, 3)
  np.testing.assert_allclose(points.sum(1), 1)
  np.testing.assert_allclose(points[19], 1 / 3)
  np.testing.assert_allclose(points[-1], [.079, .233, .688], atol=5e-4)
  np.testing.assert_allclose(points[0, 1] / points[0, 0], 1 / 20)


def test_images_that_cannot_leave_stay():
  confidences = np.array([[-np.inf, -np.inf, 1.], [3., 2., 1.]])
  found = shares.thresholds(confidences, (.7, .3))
  np.testing.assert_array_equal(
      confidence_lib.choose(confidences, found), [1, 1, 1])


def test_the_curve_has_59_points():
  rng = np.random.default_rng(0)
  confidences = rng.uniform(0, 1, (3, 200))
  correct = rng.uniform(0, 1, (3, 200)) < confidences
  points = calibrate.share_curve(confidences, correct, (1., 2., 4.))
  assert len(points) == 59
  np.testing.assert_allclose(points[19]['shares'], [.33, .33, .34])
  np.testing.assert_allclose(points[19]['macs'], .33 * 1 + .33 * 3 + .34 * 7)
  assert points == [calibrate.evaluate(
      confidences, correct, (1., 2., 4.), p['thresholds']).as_dict()
      for p in points]


@pytest.mark.parametrize('parts', [(.5, .5), (-.1, .6, .5), (.7, .7, .1)])
def test_shares_that_do_not_fit(parts):
  with pytest.raises(ValueError, match='^shares'):
    shares.thresholds(np.ones((3, 4)), parts)
