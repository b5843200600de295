"""The benchmark of budgets: what it counts, by hand."""

import numpy as np
import pytest
import scripts


@pytest.fixture(scope='module')
def module():
  with scripts.own_flags('benchmarks'):
    import deadlines
  return deadlines


def test_a_row_by_hand(module):
  budgets = np.array([5., 1., 2., 3., 4., 10., 9., 8., 7., 6.])
  found = dict(right=np.array([1., 0.5] * 5), exit=np.array([0., 2.] * 5),
               milliseconds=np.full(10, 4.5))
  row = module.summary(found, budgets)
  assert row['in_time'] == 0.6 and row['accuracy'] == 0.75
  assert row['both'] == pytest.approx((3 * 1 + 3 * 0.5) / 10)
  assert row['beyond'] == 0.5 and row['in_time_beyond'] == 0.6
  assert [(r['low'], r['high'], r['in_time']) for r in row['ranges']] == [
      (1, 2, 0), (3, 4, 0), (5, 6, 1), (7, 8, 1), (9, 10, 1)]
  first = module.summary(dict(found, exit=np.zeros(10)), budgets)
  assert first['beyond'] == 0 and first['in_time_beyond'] is None
  lines = module.table({'exit 0': first, 'within': row}).splitlines()
  assert len({line.count('|') for line in lines}) == 1
  assert '| 0.0 |' in lines[2] and '| 50.0, 60.0 |' in lines[3]
