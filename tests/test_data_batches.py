"""The index stream and the batches made from it."""

import threading

import numpy as np
import pytest

from adavit_jax import data


def toy_split(n=10, lazy=False):
  """Images whose every pixel is their index."""
  images = np.broadcast_to(
      np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1)
  )
  split = data.ArraySplit(images, np.arange(n) % 3)
  split.lazy = lazy
  return split


def test_stream_is_a_permutation_in_every_epoch():
  stream = np.concatenate([
      data.batch_indices(3, step, size=10, batch_size=4) for step in range(10)
  ])  # Four epochs, whose borders fall into batches.
  assert stream.dtype == np.int64
  epochs = stream.reshape(4, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (4, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_stream_is_numpys_permutation_of_seed_and_epoch():
  np.testing.assert_array_equal(
      data.batch_indices(7, 2, size=10, batch_size=4),
      np.concatenate([
          np.random.default_rng((7, 0)).permutation(10)[8:],
          np.random.default_rng((7, 1)).permutation(10)[:2],
      ]),
  )


def test_repeats_are_adjacent_rows_of_a_batch_of_fewer_images():
  kwargs = dict(size=10, batch_size=12, repeats=3)
  for step in range(5):  # Two epochs, whose border falls into a batch.
    got = data.batch_indices(3, step, **kwargs)
    distinct = data.batch_indices(3, step, size=10, batch_size=4)
    np.testing.assert_array_equal(
        got.reshape(4, 3), np.tile(distinct[:, None], 3))


@pytest.mark.parametrize('batch_size', [4, 5, 7, 8])
def test_a_batch_may_begin_and_end_amid_the_repeats(batch_size):
  got = np.concatenate([
      data.batch_indices(3, step, size=10, batch_size=batch_size, repeats=3)
      for step in range(12)])
  stream = np.concatenate([
      np.random.default_rng((3, epoch)).permutation(10) for epoch in range(4)])
  np.testing.assert_array_equal(got, np.repeat(stream, 3)[:len(got)])


def test_any_step_reproduces_and_callers_cannot_spoil_it():
  first = data.batch_indices(0, 5, size=9, batch_size=3)
  kept = first.copy()
  first[:] = 0
  np.testing.assert_array_equal(
      data.batch_indices(0, 5, size=9, batch_size=3), kept
  )
  assert (data.batch_indices(1, 5, size=9, batch_size=3) != kept).any()


@pytest.mark.parametrize('kwargs', [
    dict(seed=0, step=0, size=3, batch_size=4),
    dict(seed=0, step=0, size=3, batch_size=0),
    dict(seed=-1, step=0, size=3, batch_size=2),
    dict(seed=0, step=-1, size=3, batch_size=2),
    dict(seed=0, step=1, size=3, batch_size=8, repeats=3),
    dict(seed=0, step=0, size=3, batch_size=12, repeats=3),
    dict(seed=0, step=0, size=3, batch_size=2, repeats=0),
])
def test_bad_stream_is_refused(kwargs):
  with pytest.raises(ValueError, match='=-?[0-9]'):
    data.batch_indices(**kwargs)


@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('repeats', [1, 2])
def test_train_batches_of_all_processes_make_the_global_batch(lazy, repeats):
  """A share of 3 rows of a process may begin or end amid the repeats."""
  kwargs = dict(seed=1, start_step=2, stop_step=7, batch_size=6,
                repeats=repeats)
  parts = [
      list(data.train_batches(
          toy_split(lazy=lazy), process_index=i, process_count=2, **kwargs
      )) for i in range(2)
  ]
  assert len(parts[0]) == len(parts[1]) == 5
  for step, pair in enumerate(zip(*parts), start=2):
    expected = data.batch_indices(
        1, step, size=10, batch_size=6, repeats=repeats)
    image = np.concatenate([part['image'] for part in pair])
    label = np.concatenate([part['label'] for part in pair])
    assert image.shape == (6, 2, 2, 1) and label.dtype == np.int32
    np.testing.assert_array_equal(image[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(label, expected % 3)


def test_repeats_are_read_once():
  split, read = toy_split(), []
  images = split.images
  split.images = lambda indices: read.append(len(indices)) or images(indices)
  for i in range(2):
    next(data.train_batches(
        split, seed=0, start_step=0, stop_step=1, batch_size=12, repeats=3,
        process_index=i, process_count=2))
  assert read == [2, 2]


@pytest.mark.parametrize('kwargs', [
    dict(batch_size=11), dict(batch_size=5, process_count=2),
    dict(batch_size=4, process_index=2, process_count=2),
])
def test_train_batches_refuse_at_the_call(kwargs):
  with pytest.raises(ValueError):
    data.train_batches(
        toy_split(), seed=0, start_step=0, stop_step=1, **kwargs
    )


def test_lazy_batches_pass_on_exceptions():
  split = toy_split(lazy=True)
  served = []

  def images(indices):
    if len(served) == 2:
      raise OSError('disk on fire')
    served.append(indices)
    return np.zeros((len(indices), 2, 2, 1), np.uint8)

  split.images = images
  batches = data.train_batches(
      split, seed=0, start_step=0, stop_step=9, batch_size=2
  )
  next(batches), next(batches)
  with pytest.raises(OSError, match='disk on fire'):
    next(batches)


def test_closing_lazy_batches_ends_the_thread():
  before = set(threading.enumerate())
  batches = data.train_batches(
      toy_split(lazy=True), seed=0, start_step=0, stop_step=10**9, batch_size=2
  )
  next(batches)
  assert set(threading.enumerate()) - before
  batches.close()
  assert not set(threading.enumerate()) - before


@pytest.mark.parametrize('lazy', [False, True])
def test_labels_of_a_regression_stay_floats(lazy):
  split = data.ArraySplit(np.zeros((3, 2, 2, 1), np.uint8), [0.5, 1.5, 2.5])
  split.lazy = lazy
  batch, = data.train_batches(
      split, seed=0, start_step=0, stop_step=1, batch_size=3)
  assert batch['label'].dtype == np.float32
  np.testing.assert_array_equal(sorted(batch['label']), [0.5, 1.5, 2.5])
