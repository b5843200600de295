"""Benchmarks time their functions in turn."""

import importlib.util
import pathlib

import numpy as np

_PATH = pathlib.Path(__file__).parents[1] / 'benchmarks' / 'timing.py'


def _timing(monkeypatch):
  """The module with a clock that only its functions move."""
  spec = importlib.util.spec_from_file_location('timing', _PATH)
  timing = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(timing)
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
