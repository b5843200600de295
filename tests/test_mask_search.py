"""Greedy static masks: nested, and the best next step each time."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import mask_losses
from adavit_jax.policies import mask_search
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
import jax
import numpy as np
import optax
import pytest
import tiny

L = 3


@pytest.fixture(scope='module')
def given():
  """Model, parameters, cost, z1 and labels of 12 images."""
  model = tiny.model(mlp_ratio=3.)
  rng = np.random.default_rng(0)
  z1 = rng.normal(size=(12, model.num_tokens, model.width)).astype(np.float32)
  labels = rng.integers(0, 4, 12)
  return model, tiny.params(model), cost.of(model), z1, labels


@pytest.fixture(scope='module')
def found(given):
  """(chain, cost, function from [2L] to loss and accuracy, calls made)."""
  model, params, spend, z1, labels = given
  calls = []
  chain = mask_search.greedy_chain(model, params, spend, z1, labels,
                              progress=calls.append)

  @jax.jit
  def evaluate(keep):
    logits = modes.after_policy(
        model, params, z1, Actions.from_keep(keep, (L, L)), 'masked').total
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.mean(), (logits.argmax(-1) == labels).mean()

  return chain, spend, evaluate, calls


def test_chain_is_nested_from_all_layers_to_none(found):
  chain, _, _, calls = found
  keep = np.asarray(chain.actions.keep)
  assert keep.shape == (2 * L + 1, 2 * L)
  np.testing.assert_array_equal(keep[0], 1)
  np.testing.assert_array_equal(keep[-1], 0)
  np.testing.assert_array_equal((keep[:-1] - keep[1:]).sum(1), 1)
  assert (keep[:-1] >= keep[1:]).all()
  assert calls == sorted(calls)
  assert calls[-1] == mask_search.num_tried((L, L))


def test_recorded_numbers_are_those_of_the_masked_mode(found):
  chain, _, evaluate, _ = found
  for keep, loss, accuracy in zip(
      np.asarray(chain.actions.keep), chain.loss, chain.accuracy):
    want_loss, want_accuracy = evaluate(keep)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-4)
    np.testing.assert_allclose(accuracy, want_accuracy, rtol=1e-6)


def test_each_step_loses_least_per_mac_saved(found):
  chain, spend, evaluate, _ = found
  keeps = np.asarray(chain.actions.keep)
  macs = np.array([*spend.msa, *spend.mlp])
  assert spend.msa != spend.mlp
  for step in (0, 2):
    before = float(evaluate(keeps[step])[0])
    price = {}
    for i in np.flatnonzero(keeps[step]):
      keep = keeps[step].copy()
      keep[i] = 0
      price[i] = (float(evaluate(keep)[0]) - before) / macs[i]
    dropped, = np.flatnonzero(keeps[step] - keeps[step + 1])
    assert dropped == min(price, key=price.get)


def test_a_chain_that_adds_layers(given, found):
  """Each step saves most loss per MAC; the ends are those of the other."""
  model, params, spend, z1, labels = given
  _, _, evaluate, _ = found
  chain = mask_search.greedy_chain(
      model, params, spend, z1, labels, forward=True)
  keeps = np.asarray(chain.actions.keep)
  np.testing.assert_array_equal(keeps.sum(1), np.arange(2 * L, -1, -1))
  np.testing.assert_allclose(chain.loss, [evaluate(k)[0] for k in keeps],
                             rtol=1e-4)
  macs = np.array([*spend.msa, *spend.mlp])
  for fewer, more in ((keeps[-1], keeps[-2]), (keeps[3], keeps[2])):
    saved = {}
    for i in np.flatnonzero(fewer == 0):
      keep = fewer.copy()
      keep[i] = 1
      saved[i] = float(evaluate(fewer)[0] - evaluate(keep)[0]) / macs[i]
    added, = np.flatnonzero(more - fewer)
    assert added == max(saved, key=saved.get)


def test_nearest_is_the_smallest_mask_with_enough_macs(found):
  chain, spend, _, _ = found
  ratios = np.asarray(spend.ratio(chain.actions))
  for target in (0.3, 0.5, 0.62, 0.9, 1., *ratios):
    got = spend.ratio(mask_search.nearest(chain.actions, spend, target))
    enough = ratios[ratios >= target - 1e-6]
    np.testing.assert_allclose(got, enough.min(), rtol=1e-6)


def test_nearest_of_too_much_is_everything(found):
  chain, spend, _, _ = found
  np.testing.assert_array_equal(
      mask_search.nearest(chain.actions, spend, 1.5).keep, 1)


def test_masks_tried_are_one_for_every_layer_that_is_left():
  assert mask_search.num_tried((2, 3)) == 1 + 5 + 4 + 3 + 2 + 1
  assert mask_search.num_tried((0, 1)) == 2


@pytest.fixture(scope='module')
def branches():
  """(model, parameters, cost, z1, images, labels) of a RAViT.

  The one encoder of its first branch costs less than those of the second, and
  the images are looked at behind the policy.
  """
  model = models.create(
      'ravit_cifar_patch4_32', image_size=16, channels=1, width=8, num_heads=2,
      num_classes=4, layers=(1, 1), num_fixed=0)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(9, 16, 16, 1)).astype(np.float32)
  params = tiny.params(model, scale=0.5)
  z1 = jax.jit(lambda p, x: modes.before_policy(model, p, x))(params, images)
  return model, params, cost.of(model), z1, images, rng.integers(0, 4, 9)


def test_layers_of_different_cost_are_searched_by_their_own(branches):
  model, params, spend, z1, images, labels = branches
  assert spend.msa[0] < spend.msa[1] and plan.num_layers(model) == (2, 2)

  @jax.jit
  def evaluate(keep):
    logits = modes.forward(
        model, params, images, Actions.from_keep(keep, (2, 2))).total
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.mean()

  macs = np.array([*spend.msa, *spend.mlp])
  for forward in (False, True):
    chain = mask_search.greedy_chain(
        model, params, spend, z1, labels, images=images, batch_size=4,
        forward=forward)
    keeps = np.asarray(chain.actions.keep)
    losses = np.array([evaluate(keep) for keep in keeps])
    np.testing.assert_allclose(chain.loss, losses, rtol=1e-4)
    rows = keeps[::-1] if forward else keeps
    for before, after in zip(rows, rows[1:]):
      price = {}
      for i in np.flatnonzero(before != forward):
        keep = before.copy()
        keep[i] = forward
        price[i] = float(evaluate(keep) - evaluate(before)) / macs[i]
      changed, = np.flatnonzero(before != after)
      assert changed == min(price, key=price.get)


def test_candidates_of_a_model_that_looks_at_the_images_again(branches):
  model, params, spend, z1, images, labels = branches
  masks = mask_search.candidates(
      model, params, spend, z1, labels, images=images)
  assert [a.shape for a in masks] == [(15, 2)] * 2
  chain = mask_search.greedy_chain(
      model, params, spend, z1, labels, images=images)
  np.testing.assert_array_equal(masks.keep[:5], chain.actions.keep)


def test_too_few_images(given):
  model, params, spend, z1, labels = given
  with pytest.raises(ValueError, match='data.holdout.*num_search'):
    mask_search.candidates(model, params, spend, z1[:1], labels[:1])


@pytest.mark.parametrize('batch_size', [
    pytest.param(1, marks=pytest.mark.nightly), 5, 20])
def test_images_may_be_searched_in_batches(given, found, batch_size):
  for options in ({}, {'forward': True}):
    want = mask_search.greedy_chain(*given, **options)
    got = mask_search.greedy_chain(*given, batch_size=batch_size, **options)
    np.testing.assert_array_equal(got.actions.keep, want.actions.keep)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
    np.testing.assert_allclose(got.accuracy, want.accuracy, rtol=1e-6)


class _Table:
  """Known losses in place of `MaskLosses`; says which were asked for."""

  def __init__(self, table, size):
    self._table, self._size = table, size
    self.ran = np.zeros(table.shape, bool)

  def parts(self, rows):
    return np.array_split(rows, -(-len(rows) // self._size))

  def run(self, keeps, rows):
    for i in np.int32(keeps[:, 0]):
      self.ran[i, rows] = True

  def of(self, keep, rows):
    i = int(keep[0])
    loss = np.where(self.ran[i], self._table[i], np.nan)[rows]
    return np.stack([loss, loss])


@pytest.mark.parametrize('seed', range(4))
def test_masks_that_cannot_win_are_given_up_early(seed):
  """Masks are numbers here: 0 was run before, one of 1 to 8 is to follow."""
  rng = np.random.default_rng(seed)
  hard = rng.exponential(size=40) ** 4  # few images have most of the loss
  table = hard * rng.uniform(0.8, 4, (9, 40))
  table[0], macs = hard, rng.uniform(1, 2, 8)
  images = np.flatnonzero(rng.permutation(40) < 30)
  losses, shares = _Table(table, 4), []
  losses.run(np.zeros((1, 1)), images)
  got = mask_search._cheapest(
      losses, images, np.zeros(1), np.arange(1, 9)[:, None], macs,
      shares.append)
  increase = table[1:, images].mean(1) - hard[images].mean()
  assert got == np.argmin(increase / macs)
  assert losses.ran[1 + got, images].all()
  assert losses.ran[1:].sum() < 0.8 * 8 * 30
  assert shares == sorted(shares) and shares[-1] == 1


def test_candidates_of_images_that_devices_share(given, monkeypatch):
  """Eleven images on two devices."""
  model, params, spend, z1, labels = given
  arrays = spend, z1[:11], labels[:11]
  want = mask_search.candidates(model, params, *arrays)
  mesh, laid, losses = mesh_lib.make_mesh(2), [], mask_losses._losses
  def spied(model, mesh, params, x, labels):
    laid.append((x, labels))
    return losses(model, mesh, params, x, labels)
  monkeypatch.setattr(mask_losses, '_losses', spied)
  got = mask_search.candidates(
      model, sharded.put(params, mesh), *arrays, mesh=mesh)
  np.testing.assert_array_equal(got.keep, want.keep)
  for x in jax.tree.leaves(laid):  # 5 and 6 images
    assert [shard.data.shape[0] for shard in x.addressable_shards] == [3, 3]


def test_candidates_are_the_chains_of_all_easy_and_hard_images(given, found):
  model, params, _, z1, labels = given
  calls = []
  got = np.asarray(mask_search.candidates(*given, progress=calls.append).keep)
  assert calls == sorted(calls)
  assert calls[-1] == mask_search.NUM_CHAINS * mask_search.num_tried((L, L))
  p = np.float64(jax.nn.softmax(modes.classify(model, params, z1).total))
  entropy = -(p * np.log(p)).sum(-1)
  hard = entropy.argsort().argsort() >= 6
  chains = [found[0].actions] + [
      mask_search.greedy_chain(*given[:3], z1[few], labels[few]).actions
      for few in (~hard, hard)]
  want = np.concatenate([c.keep for c in chains])
  np.testing.assert_array_equal(got, want)
  assert (chains[1].keep != chains[2].keep).any()


def test_candidates_of_images_that_are_all_alike(given):
  model, params, spend, z1, labels = given
  alike = np.tile(z1[:1], (12, 1, 1)), np.tile(labels[:1], 12)
  masks = mask_search.candidates(model, params, spend, *alike)
  chains = np.asarray(masks.keep).reshape(3, 2 * L + 1, 2 * L)
  np.testing.assert_array_equal(chains[1], chains[0])
  np.testing.assert_array_equal(chains[2], chains[0])
