"""Benchmarks time their functions in turn."""

import jax
import numpy as np
import pytest
import tiny


def _timing(monkeypatch):
  """The module with a clock that only its functions move."""
  timing = tiny.load('benchmarks/timing.py')
  now = [0.]
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
  return timing, now


def test_turns_are_warmed_up_and_their_order_changes(monkeypatch):
  timing, now = _timing(monkeypatch)
  calls = []

  def function(name, seconds):
    def run(i):
      calls.append((i, name))
      now[0] += seconds(i, len(calls))
    return run

  # The first call of a turn is slow, as after a rest; b slows down per round.
  slow = lambda: 1. if len(calls) < 2 or calls[-1] != calls[-2] else 0.
  times = timing.alternate({
      'a': function('a', lambda i, n: 0.01 + slow()),
      'b': function('b', lambda i, n: 0.1 * (i + 1) + slow()),
      'c': function('c', lambda i, n: 0.5)}, 3)
  np.testing.assert_allclose(times['a'], [0.01] * 3)
  np.testing.assert_allclose(times['b'], [0.2, 0.3, 0.4])
  np.testing.assert_allclose(times['c'], [0.5] * 3)
  turns = list(dict.fromkeys(calls))
  assert [[n for j, n in turns if j == i] for i in range(4)] == [
      ['a', 'b', 'c'], ['a', 'c', 'b'], ['c', 'a', 'b'], ['c', 'b', 'a']]


def test_a_row_by_hand(monkeypatch):
  timing, _ = _timing(monkeypatch)
  # Medians 2 and 8 ms of 4 images; the means would be 5 and 9.
  row = timing.row(
      'vit', 'compact', 4, 0.51249, np.array([0.001, 0.002, 0.012]),
      np.array([0.007, 0.008, 0.012]), [0.25, 0.5, 0.6], dtype='float32',
      compile_s=3.5, temp_mb=7.)
  assert {k: row[k] for k in ('model', 'mode', 'batch', 'keep', 'dtype', 'jax',
                              'compile_s', 'temp_mb')} == dict(
      model='vit', mode='compact', batch=4, keep=0.512, dtype='float32',
      jax=jax.__version__, compile_s=3.5, temp_mb=7.)
  want = dict(time_ms=2., images_per_s=2000., time_ratio=0.25, mac_ratio=0.45,
              efficiency=8 * 0.45 / 2)
  assert {k: row[k] for k in want} == pytest.approx(want)
  assert row['quartiles_ms'] == pytest.approx([1.5, 7.])
  assert row['device'] == f'cpu cpu, {timing.num_cores()} cores'
  assert set(timing.COLUMNS) <= set(row)
  line = timing.format_row(row).split()
  assert line == ['vit', 'compact', '4', '0.51', '2.00', '2,000.0', '0.250',
                  '0.450', '1.800', '3.5', '7.0']
  assert len(timing.header().split()) == len(line)
