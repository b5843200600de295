"""The example of a battery knob, on a classifier whose MACs are known."""

import types

import numpy as np
import pytest
import scripts
import tiny


class Classifier:
  """Takes 10 MACs if the entropy 0.45 of every image is below the threshold."""
  thresholds = None

  def stream(self, images):
    for image in images:
      sure = -0.45 > self.thresholds
      yield types.SimpleNamespace(labels=image, macs=10 if sure else 40)


def test_a_falling_charge_lets_images_leave_earlier():
  with scripts.own_flags('examples'):
    battery = tiny.load('examples/battery.py')
  knob = lambda charge: battery.threshold(charge, at_full=0.2, at_empty=1.2)
  assert [knob(x) for x in (1., 0.5, 0.)] == pytest.approx([-0.2, -0.7, -1.2])
  read = []
  images = (read.append(i) or i % 3 for i in range(100))
  charge, right, macs = battery.drain(
      Classifier(), images, [1] * 100, 400., knob)
  # The threshold passes 0.45 at a charge of 0.75, that is after three images.
  np.testing.assert_array_equal(macs, [40] * 3 + [10] * 28)
  np.testing.assert_allclose(charge, 1 - (np.cumsum(macs) - macs) / 400)
  np.testing.assert_array_equal(right, np.arange(31) % 3 == 1)
  assert len(read) == 31
