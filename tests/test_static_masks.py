"""The static baselines: nothing that a mask can do is left out."""

import itertools
import types

from adavit_jax import cost
from adavit_jax.evaluation import evaluator
from adavit_jax.models.actions import Actions
from adavit_jax.report import static_masks
from adavit_jax.runs import loop
from adavit_jax.runs import phase_start
import numpy as np
import pytest
import tiny

# Stem 10, encoders of MSA 4 and MLP 2, of which one is fixed, head 6.
SPEND = cost.Cost(
    always=10 + 6 + 6, encoders=6, msa=(4, 4), mlp=(2, 2), policy=0,
    stages=(34,), layer_stages=Actions((0, 0), (0, 0)))


def _outputs(correct, actions):
  """As many images under one mask."""
  return evaluator.Outputs(
      ~correct, correct, np.ones(len(correct)), Actions(*(
          np.broadcast_to(a, (len(correct), a.shape[-1])) for a in actions)))


def _best_mixture(macs, accuracy, budget):
  """The best accuracy that one or two masks have within a budget."""
  best = max(a for m, a in zip(macs, accuracy) if m <= budget)
  for i, j in itertools.permutations(range(len(macs)), 2):
    if macs[i] < budget < macs[j]:
      share = (budget - macs[i]) / (macs[j] - macs[i])
      best = max(best, (1 - share) * accuracy[i] + share * accuracy[j])
  return best


@pytest.mark.parametrize('seed', range(5))
def test_frontier_beats_every_mask_and_mixture(seed):
  rng = np.random.default_rng(seed)
  macs = rng.integers(1, 9, 14).astype(float)  # some cost the same
  accuracy = rng.integers(0, 20, 14) / 20
  corners = static_masks.frontier(macs, accuracy, rng.normal(size=14))
  x, y = macs[corners][::-1], accuracy[corners][::-1]
  assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()
  assert (np.diff(np.diff(y) / np.diff(x)) < 0).all()
  for budget in np.linspace(macs.min(), macs.max(), 33):
    assert np.interp(budget, x, y) == pytest.approx(
        _best_mixture(macs, accuracy, budget))


def test_the_loss_decides_between_equals():
  assert static_masks.frontier([1, 1, 1], [.5, .5, .5], [.3, .1, .2]) == [1]


@pytest.mark.parametrize('num_layers, want', [
    ((2, 2), ['11 11', '10 11', '10 10', '00 10', '00 00']),
    # Where one kind has run out, the other goes on.
    ((1, 3), ['1 111', '0 111', '0 110', '0 100', '0 000']),
    ((3, 1), ['111 1', '110 1', '110 0', '100 0', '000 0']),
    ((0, 2), [' 11', ' 10', ' 00']), ((2, 0), ['11 ', '10 ', '00 '])])
def test_last_k_by_hand(num_layers, want):
  got = static_masks.last_k(num_layers)
  halves = zip(*(row.split(' ') for row in want))
  for a, rows in zip(got, halves, strict=True):
    np.testing.assert_array_equal(a, [[*map(int, row)] for row in rows])


def test_known_masks_come_from_every_source(monkeypatch):
  """Held-out images tell; each source holds one corner."""
  model = tiny.model(depth=3)
  right = {'1111': 10, '1011': 9, '0101': 8, '1000': 6, '0000': 0}

  class Evaluator:

    def with_masks(self, params, split, masks):
      assert (params, split) == ('params', 'held out')
      for actions in map(Actions, *masks):
        good = right.get(''.join(str(int(k)) for k in actions.keep), 1)
        yield _outputs(np.arange(10) < good, actions)

  def added(trainer, params, *, forward):
    assert params == 'params' and forward
    return Actions.from_keep(np.array([[1., 0, 0, 0]]), (2, 2))

  class Split(str):

    def __len__(self):
      return 10

  trainer = types.SimpleNamespace(
      system=types.SimpleNamespace(plain_cost=SPEND, model=model),
      dataset=types.SimpleNamespace(holdout=Split('held out')),
      evaluator=Evaluator())
  monkeypatch.setattr(phase_start, 'static_masks', added)
  found = static_masks.known(trainer, 'params', Actions.from_keep(
      np.array([[0., 1, 0, 1], [0, 1, 0, 0]]), (2, 2)))
  corners = static_masks.frontier(*found.score)
  np.testing.assert_array_equal(found.actions.keep[corners], [
      [1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
  for i in corners:
    np.testing.assert_array_equal(found.mask(i).keep, found.actions.keep[i])
    assert [a.shape for a in found.mask(i)] == [(2,), (2,)]
  # (stem, the fixed encoder, MSA 1 and MLP 1, head) of all that the model has
  np.testing.assert_allclose(found.macs[corners[2]], (10 + 6 + 6 + 6) / 34)


def test_a_tuned_mask_is_judged_by_test_images(monkeypatch):
  state = types.SimpleNamespace(params=dict(backbone='last'),
                                ema=dict(backbone='averaged'))
  monkeypatch.setattr(loop, 'Trainer', lambda *args: types.SimpleNamespace(
      train=lambda: state))

  def given(params, split, actions):
    assert (params['backbone'], split) == ('averaged', 'test')
    return _outputs(np.arange(4) < 3, actions)

  trainer = types.SimpleNamespace(
      config=tiny.get_config(),
      system=types.SimpleNamespace(plain_cost=SPEND),
      dataset=types.SimpleNamespace(holdout='held out', test='test'),
      evaluator=types.SimpleNamespace(with_actions=given))
  row = static_masks.finetuned(
      trainer, 'workdir', Actions(np.float32([1, 0]), np.float32([0, 1])))
  assert (row['keep'], row['accuracy'], row['macs']) == ('1001', .75, 28)


@pytest.mark.parametrize('budget, want', [
    (.2, 1),   # the most accurate within the slack
    (.25, 1),  # a mask at the budget itself counts
    (.26, 2),  # none within the slack: the nearest above
    (.6, 3)])  # none above: the dearest
def test_mask_for_a_budget(budget, want):
  macs = np.array([.2, .25, .4, .5])
  accuracy = np.array([.6, .7, .8, .9])
  assert static_masks.at_budget(macs, accuracy, np.ones(4), budget, .06) == want


def test_masks_for_a_budget_that_are_as_accurate():
  ties = [.3, .3], [.5, .5], [.2, .1]
  assert static_masks.at_budget(*map(np.array, ties), .29, .05) == 1
