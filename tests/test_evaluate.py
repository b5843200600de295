"""Evaluation keeps host and devices busy at the same time."""

import threading

from adavit_jax import data
from adavit_jax.train import evaluate
from adavit_jax.train import mesh as mesh_lib
import numpy as np


class _Split(data.ArraySplit):
  """Ten images whose pixel is their index; says when a batch is decoded."""

  def __init__(self, decoded, lazy):
    pixels = np.arange(10, dtype=np.uint8)
    super().__init__(pixels[:, None, None, None], pixels % 3)
    self._decoded, self.lazy = decoded, lazy

  def images(self, indices):
    self._decoded(int(indices[0]) // 4)
    return super().images(indices)


def _same(images, labels, rows):
  return images[:, 0, 0, 0], labels, rows


def _check(columns):
  pixels, labels, rows = columns
  np.testing.assert_array_equal(pixels, np.arange(10))
  np.testing.assert_array_equal(labels, np.arange(10) % 3)
  np.testing.assert_array_equal(rows, np.arange(10))


def test_a_batch_is_fetched_after_the_next_one_is_started(monkeypatch):
  events, fetch = [], mesh_lib.fetch
  def run(images, labels, rows):
    events.append(f'run {rows[0] // 4}')
    return _same(images, labels, rows)
  def fetched(out):
    events.append(f'fetch {int(out[2][0]) // 4}')
    return fetch(out)
  monkeypatch.setattr(mesh_lib, 'fetch', fetched)
  split = _Split(lambda i: events.append(f'decode {i}'), lazy=False)
  _check(evaluate.collect(split, run, mesh_lib.make_mesh(2), 4))
  assert events == ['decode 0', 'run 0', 'decode 1', 'run 1', 'fetch 0',
                    'decode 2', 'run 2', 'fetch 1', 'fetch 2']


def test_the_next_batch_is_decoded_while_one_is_run():
  decoded = [threading.Event() for _ in range(3)]
  before = threading.active_count()
  def run(images, labels, rows):
    # Nothing else would decode it before this batch is done.
    assert decoded[min(rows[0] // 4 + 1, 2)].wait(5)
    return _same(images, labels, rows)
  split = _Split(lambda i: decoded[i].set(), lazy=True)
  _check(evaluate.collect(split, run, mesh_lib.make_mesh(2), 4))
  assert threading.active_count() == before
