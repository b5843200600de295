"""Evaluation keeps host and devices busy, and neither holds too much."""

import functools
import threading
import types

from adavit_jax import data
from adavit_jax.evaluation import batched
from adavit_jax.evaluation import evaluator
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import mask_losses
from adavit_jax.policies import mask_search
from adavit_jax.runs import phase_start
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
import jax
import numpy as np
from one_batch import make_system
from one_batch import state  # a fixture
import pytest
import tiny


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
  _check(batched.collect(split, run, mesh_lib.make_mesh(2), 4))
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
  _check(batched.collect(split, run, mesh_lib.make_mesh(2), 4))
  assert threading.active_count() == before


@pytest.fixture(scope='module')
def trainer():
  """What `phase_start` needs of a trainer: batches of 6 on 2 devices."""
  system, mesh = make_system(eval_batch_size=6, num_search=15), (
      mesh_lib.make_mesh(2))
  return types.SimpleNamespace(
      system=system, config=system.config, mesh=mesh, dataset=tiny.dataset(),
      evaluator=evaluator.Evaluator(system, mesh, 6))


def _z1(system, params, split, rows):
  run = jax.jit(lambda params, images: modes.before_policy(
      system.model, params, system.normalize(images)))
  return np.asarray(run(params, split.images(rows)))


def test_feature_statistics_are_of_all_images_but_fetched_without_them(
    trainer, state, monkeypatch):
  system, split = trainer.system, trainer.dataset.train
  fetch, shapes = mesh_lib.fetch, set()
  def fetched(out):
    shapes.update(x.shape for x in jax.tree.leaves(out))
    return fetch(out)
  monkeypatch.setattr(mesh_lib, 'fetch', fetched)
  got = phase_start.with_stats(trainer, state).params['policy_stats']
  z1 = _z1(system, state.params, split, np.arange(len(split)))
  features = np.asarray(jax.jit(lambda z1: learned.token_features(
      system.nets, system.model, z1))(z1), np.float64)
  np.testing.assert_allclose(got.mean, features.mean(0), atol=1e-6)
  np.testing.assert_allclose(got.std, features.std(0) + 0.01, rtol=1e-5)
  assert got.mean.dtype == got.std.dtype == np.float32
  assert shapes == {(features.shape[1],)}


@pytest.mark.nightly
def test_devices_share_the_images_of_the_mask_search(
    trainer, state, monkeypatch):
  """15 images in batches of 6; each of 2 devices runs 3 of a batch."""
  system, split = trainer.system, trainer.dataset.holdout
  laid, losses = [], mask_losses._losses
  def spied(model, mesh, params, x, labels):
    laid.append((x, labels))
    return losses(model, mesh, params, x, labels)
  monkeypatch.setattr(mask_losses, '_losses', spied)
  got = phase_start.static_masks(trainer, state.params, forward=True)
  assert {shard.data.shape[0] for x in jax.tree.leaves(laid)
          for shard in x.addressable_shards} == {3}
  rows = np.linspace(0, 15, 15).astype(int)
  want = mask_search.greedy_chain(
      system.model, system.fold(state.params), system.plain_cost,
      _z1(system, state.params, split, rows), split.labels[rows], forward=True)
  np.testing.assert_array_equal(got.keep, want.actions.keep)


def test_every_mask_on_every_image(trainer, state):
  """In batches of 6, on two devices."""
  split, rows = trainer.dataset.holdout, np.arange(1, 16)
  masks = state.params['value'].masks
  observed, success, correct = trainer.evaluator.success(
      state.params, split, masks, rows)
  assert len(observed) == 15 and observed.dtype == np.float32
  assert success.shape == correct.shape == (15, len(masks.msa))
  every = trainer.evaluator.with_masks(state.params, split, masks)
  assert len(every) == len(masks.msa)
  for i in (0, 4):
    want = trainer.evaluator.with_actions(
        state.params, split, Actions(*(a[i] for a in masks)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4),
                 every[i], want)
    np.testing.assert_allclose(
        success[:, i], np.exp(-want.loss[rows]), rtol=1e-4)
    np.testing.assert_array_equal(correct[:, i], want.correct[rows])
