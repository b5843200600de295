"""Parts of a computation are kept on disk, whole or not at all."""

import types

from adavit_jax.models.actions import Actions
from adavit_jax.runs import table_cache
from adavit_jax.runs import value_fit
import numpy as np
import pytest

INPUTS = {'a': np.arange(3.), 'b': (np.zeros((2, 1), np.int32),)}


def _compute(calls, part):
  def compute():
    calls.append(part)
    return np.full((2, 3), part, np.float32), np.array([True, False])
  return compute


def test_parts_are_computed_once(tmp_path):
  calls = []
  for _ in range(2):  # the second time as after a restart
    cache = table_cache.TableCache(tmp_path, 'train', INPUTS)
    for part in (0, 8):
      values, flags = cache.get(part, _compute(calls, part))
      assert values.dtype == np.float32 and flags.dtype == bool
      np.testing.assert_array_equal(values, np.full((2, 3), part))
      np.testing.assert_array_equal(flags, [True, False])
  assert calls == [0, 8]


@pytest.mark.parametrize('other', [
    {**INPUTS, 'a': np.array([0., 1., 3.])}, {**INPUTS, 'c': np.zeros(0)}])
def test_another_computation_removes_the_parts(tmp_path, other):
  calls = []
  for i, (name, inputs) in enumerate((
      ('train', INPUTS), ('holdout', INPUTS), ('train', other),
      ('holdout', INPUTS))):
    table_cache.TableCache(tmp_path, name, inputs).get(0, _compute(calls, i))
  assert calls == [0, 1, 2]
  assert len(list((tmp_path / 'table').iterdir())) == 2


def test_a_damaged_part_is_computed_again(tmp_path, caplog):
  calls = []
  cache = table_cache.TableCache(tmp_path, 'train', INPUTS)
  cache.get(0, _compute(calls, 0))
  path, = (tmp_path / 'table').iterdir()
  path.write_bytes(path.read_bytes()[:40])
  cache.get(0, _compute(calls, 0))
  cache.get(0, _compute(calls, 0))
  assert calls == [0, 0] and path.name in caplog.text


def test_a_part_that_fails_leaves_nothing(tmp_path):
  cache = table_cache.TableCache(tmp_path, 'train', INPUTS)
  with pytest.raises(KeyboardInterrupt):
    cache.get(0, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
  assert not list((tmp_path / 'table').iterdir())


def test_without_a_cache_nothing_is_written(tmp_path):
  calls = []
  cache = table_cache.TableCache(tmp_path, 'train', INPUTS, enabled=False)
  for _ in range(2):
    cache.get(0, _compute(calls, 0))
  assert calls == [0, 0] and not list(tmp_path.iterdir())


def test_parts_of_another_batch_size_are_not_read(tmp_path):
  """It may change when a run is resumed."""
  masks = Actions(np.ones((2, 3)), np.ones((2, 3)))
  for size in (2, 1):
    trainer = types.SimpleNamespace(
        workdir=tmp_path, dataset=types.SimpleNamespace(train=range(11)),
        config=types.SimpleNamespace(eval_batch_size=size),
        evaluator=types.SimpleNamespace(
            success=lambda params, split, masks, places: (places, -places)))
    rows, negative = value_fit._success(
        trainer, {}, 'train', masks, 11)
    np.testing.assert_array_equal(rows, np.arange(11))
    np.testing.assert_array_equal(negative, -np.arange(11))
