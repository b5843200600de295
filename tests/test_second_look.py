"""The benchmark of a second decision, on results where its gain is known."""

import numpy as np
import pytest
import scripts


@pytest.fixture(scope='module')
def second_look():
  with scripts.own_flags('benchmarks'):
    import second_look
  return second_look


def test_only_the_second_encoder_tells_which_mask_is_right(second_look):
  rng = np.random.default_rng(0)
  def table(num):
    later = rng.choice([-1., 1.], (num, 2, 1))
    needs_all = later[:, 1] > 0
    correct = np.concatenate([np.ones_like(needs_all), ~needs_all], 1)
    return rng.normal(size=(num, 3)), later, correct.astype(float), correct
  got = list(second_look.rows(
      (table(400), table(400)), np.float32([1, 0.5]), [0.7, 1.]))
  assert [(row['more'], row['budget']) for row in got] == [
      (more, budget) for more in range(3) for budget in (0.7, 1.)]
  cheap = got[::2]
  assert cheap[0]['gain'] == cheap[0]['error'] == 0
  # All images that need it would get the first mask, about 0.75 of the MACs.
  assert cheap[2]['accuracy'] > 0.85 > cheap[1]['accuracy']
  assert cheap[2]['gain'] == pytest.approx(
      cheap[2]['accuracy'] - cheap[0]['accuracy'])
  assert cheap[0]['r2'] < 0.05 and cheap[2]['r2'] > 0.99
  assert got[-1]['accuracy'] == 1 and got[-1]['macs'] == pytest.approx(
      0.75, abs=0.1)
