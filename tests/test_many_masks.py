"""Many masks on the same images: shared prefixes run once, nothing else."""

import math
import weakref

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.params import fold
from adavit_jax.runtime import many_masks
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
import jax
import numpy as np
import odd
import pytest
import test_dvt_reuse
import tiny


def _masks(num_layers, num):
  """Random ones, all layers, none, and one twice."""
  rng = np.random.default_rng(0)
  keep = rng.integers(0, 2, (num, sum(num_layers))).astype(np.float32)
  keep = np.concatenate([keep, np.ones_like(keep[:1]), 0 * keep[:1], keep[:1]])
  return Actions.from_keep(keep, num_layers)


def _check(model, params, images, num=4, mesh=None):
  """Compares with the mode 'masked'; all of one mask at a time."""
  params = fold(model, params)
  masks = _masks(plan.num_layers(model), num)
  z1 = jax.jit(lambda p, x: modes.before_policy(model, p, x))(params, images)
  want = jax.jit(lambda p, z1, x, masks: jax.lax.map(
      lambda mask: modes.after_policy(
          model, p, z1, Actions(*mask), 'masked', images=x).total, masks))(
              params, z1, images, tuple(masks))
  assert np.ptp(want, axis=0).max() > 0.05
  if mesh is not None:
    z1, images = mesh_lib.shard_batch((z1, images), mesh)
    params = sharded.put(params, mesh)
  seen = []
  finish = jax.jit(lambda p, x: modes.classify(model, p, x).total)
  def logits(x):
    seen.append(jax.tree.leaves(x)[0])
    return finish(params, x)
  got = many_masks.run(model, params, z1, masks, logits, images=images)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
  np.testing.assert_array_equal(got[0], got[-1])
  assert len(seen) == len(set(map(bytes, masks.keep))) < len(masks.msa)
  return seen


@pytest.mark.parametrize('dictionary', [
    False, pytest.param(True, marks=pytest.mark.nightly)])
def test_any_plan(dictionary):
  """Branches that always run, stacks that share a group, and a bridge."""
  model = odd.model(num_fixed=1, dictionary=dictionary)
  rng = np.random.default_rng(1)
  images = rng.normal(size=(5, 4, 4, 1)).astype(np.float32)
  _check(model, tiny.params(model), images)


def test_devices_share_the_images():
  """The class token alone is computed where only it is read."""
  model = tiny.model(depth=3)
  images = np.random.default_rng(1).normal(size=(6, 8, 8, 1)).astype(np.float32)
  seen = _check(model, tiny.params(model), images, mesh=mesh_lib.make_mesh(2))
  assert {x.shape[1] for x in seen} == {1, model.num_tokens}
  for x in seen:
    assert [s.data.shape[0] for s in x.addressable_shards] == [3, 3]


@pytest.mark.nightly
def test_encoders_with_arrays_of_their_own():
  """A DVT: relations go into its encoders, and logits come out of them."""
  _check(test_dvt_reuse.model(num_fixed=1), tiny.params(test_dvt_reuse.model()),
         test_dvt_reuse.images())


class _Activations:
  """Stands for an array; counts how many are alive."""
  alive = weakref.WeakSet()

  def __init__(self, steps):
    self.steps = steps
    self.alive.add(self)


def test_each_step_runs_once_and_few_activations_are_alive(monkeypatch):
  """A greedy search's masks, then all masks of eight layers."""
  without_one = 1 - np.eye(12)
  every = np.array(list(np.ndindex(*[2] * 8)))
  for keep in (np.concatenate([without_one, np.ones((1, 12))]), every):
    sequences = [tuple(np.flatnonzero(row)) for row in keep]
    run, alive = [], []
    def step(model, params, x, images, this, run=run, alive=alive):
      run.append((*x.steps, this))
      made = _Activations(run[-1])
      alive.append(len(_Activations.alive))
      return made
    monkeypatch.setattr(many_masks, '_step', step)
    ended = {}
    for here, x in many_masks._leaves(
        None, None, _Activations(()), None, sequences):
      ended.update(dict.fromkeys(here, x.steps))
    assert [ended[i] for i in range(len(keep))] == sequences
    assert len(run) == len(set(run)) == len(
        {s[:i] for s in sequences for i in range(1, len(s) + 1)})
    assert max(alive) <= 2 + math.log2(len(keep))
