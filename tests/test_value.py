"""The value policy against closed forms."""

import types

from adavit_jax.models.actions import Actions
from adavit_jax.policies import knob
from adavit_jax.policies import value
from adavit_jax.report import ceiling
from adavit_jax.runs import value_fit
from adavit_jax.train import state as state_lib
import jax.numpy as jnp
import numpy as np
import pytest


def test_the_price_meets_the_target_and_spends_on_the_hard():
  ratios = jnp.float32([1., 0.6, 0.2])
  success = jnp.float32([
      [0.99, 0.98, 0.97],  # easy: little is gained by computing
      [0.95, 0.85, 0.60],
      [0.90, 0.55, 0.20],  # hard
      [0.99, 0.98, 0.96]])
  spent = []
  for target in (0.25, 0.45, 0.65, 0.85, 1.):
    price = value.solve_price(success, ratios, target)
    best = value.best(success, ratios, price)
    mean = ratios[best].mean()
    assert mean <= target + 1e-6
    assert ratios[best[2]] >= ratios[best[1]] >= ratios[best[0]]
    # It is the lowest such price: at a lower one the mean exceeds the target.
    cheaper = (success - 0.99 * price * ratios).argmax(-1)
    assert ratios[cheaper].mean() > target or target == 1.
    spent.append(mean)
  assert spent == sorted(spent) and spent[0] < spent[-1]
  # By hand: 0.4 is all that the hard one may cost, the others take 0.2.
  best = value.best(success, ratios, value.solve_price(success, ratios, 0.4))
  np.testing.assert_array_equal(best, [2, 2, 0, 2])


def test_no_price_takes_no_more_than_helps():
  """Every image is served best by the small mask: no price is needed."""
  success, ratios = jnp.float32([[0.5, 0.9]] * 2), jnp.float32([1., 0.3])
  best = value.best(success, ratios, value.solve_price(success, ratios, 0.8))
  np.testing.assert_array_equal(best, [1, 1])


def test_ridge_solves_its_equations_and_finds_the_truth():
  rng = np.random.default_rng(0)
  inputs, truth = rng.normal(size=(300, 5)) + 3, rng.normal(size=(5, 4))
  success = inputs @ truth + 0.7
  noisy = success + rng.normal(size=success.shape)
  kernel, bias, penalty = value.fit(inputs, noisy)
  assert kernel.dtype == bias.dtype == np.float32 and penalty > 0
  x = inputs - inputs.mean(0)
  want = np.linalg.solve(
      x.T @ x + penalty * np.eye(5), x.T @ (noisy - noisy.mean(0)))
  np.testing.assert_allclose(kernel, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      bias, noisy.mean(0) - inputs.mean(0) @ want, rtol=1e-4)
  new = rng.normal(size=(100, 5)) + 3
  fitted = value.Value(kernel, bias, None, None)
  error = value.predict(fitted, new) - (new @ truth + 0.7)
  assert np.square(error).mean() < 0.1  # that of a single image is 1


def test_more_inputs_than_images_and_none_that_matter():
  """Left-one-out errors choose a penalty that leaves next to nothing."""
  rng = np.random.default_rng(1)
  kernel, _, penalty = value.fit(
      rng.normal(size=(40, 60)), rng.normal(size=(40, 3)))
  assert penalty > 100 and np.abs(kernel).max() < 0.1


def test_interaction_r2():
  rng = np.random.default_rng(2)
  images, masks = rng.normal(size=(50, 1)), rng.normal(size=(1, 6))
  own = rng.normal(size=(50, 6))
  table = images + masks + own
  assert value.interaction_r2(table, table) == 1
  # What is said of images or masks alone is worth nothing.
  assert value.interaction_r2(images + 0 * own, table) == pytest.approx(0)
  assert value.interaction_r2(5 * masks + 0 * own, table) == pytest.approx(0)
  assert value.interaction_r2(
      0.5 * own - images, table) == pytest.approx(0.75)
  assert np.isnan(value.interaction_r2(own, np.ones((50, 6))))


def test_a_value_policy_runs_all_layers_before_its_fit():
  fresh = value.new(3, 4, (2, 5))
  assert not value.is_fitted(fresh)
  assert fresh.masks.msa.shape == (4, 2) and fresh.masks.mlp.shape == (4, 5)
  assert jnp.stack([x.min() for x in fresh.masks]).min() == 1
  assert value.is_fitted(fresh._replace(kernel=fresh.kernel.at[1, 2].set(-1)))


@pytest.mark.parametrize('decide, low, high', [
    ('networks', 0.0025, 0.9975), ('value', 0.001, 20)])
def test_calibrate_a_knob(decide, low, high, caplog):
  used = knob.KNOBS[decide]
  wanted = used.at(0.3 * used.low + 0.7 * used.high)
  spent = lambda number: 0.6 if number < wanted else 0.4
  assert knob.calibrate(used, spent, 0.5) == pytest.approx(wanted, rel=5e-3)
  assert knob.calibrate(used, lambda _: 0.1, 0.5) == pytest.approx(
      low, rel=0.01)
  assert not caplog.records
  assert knob.calibrate(used, lambda _: 0.9, 0.5) == pytest.approx(
      high, rel=0.01)
  assert used.name in caplog.text
  sweep = used.sweep(5)
  assert sweep == sorted(sweep) and low < sweep[0] and sweep[-1] < high


@pytest.mark.parametrize('decide, bad', [
    ('networks', 1.), ('networks', 0), ('networks', np.ones(2)),
    ('networks', '0.5'), ('value', 0), ('value', np.inf), ('value', np.nan)])
def test_a_knob_out_of_range(decide, bad):
  name = knob.KNOBS[decide].name
  with pytest.raises(ValueError, match=f'{name}='):
    knob.KNOBS[decide].check(bad)
  knob.KNOBS[decide].check(np.float32(0.5))


@pytest.mark.parametrize('num', [0, 6])
def test_the_price_is_of_held_out_images_if_there_are_any(tmp_path, num):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(20, 3)).astype(np.float32)
  success = np.float32([1.2, 0.3]) * inputs[:, :1] + 0.1 * inputs[:, 1:]
  masks = Actions(*np.float32([[[1, 1], [0, 1]]] * 2))
  ratios = jnp.float32([1., 0.5])
  cost = types.SimpleNamespace(ratio=lambda masks: ratios)
  trainer = types.SimpleNamespace(
      workdir=tmp_path,
      dataset=types.SimpleNamespace(train=range(20), holdout=range(num)),
      config=types.SimpleNamespace(
          eval_batch_size=4, num_value=20, num_search=10, mac_target=0.75),
      system=types.SimpleNamespace(
          deciding=lambda decide: types.SimpleNamespace(cost=cost)),
      evaluator=types.SimpleNamespace(success=lambda params, split, masks, i: (
          inputs[i], success[i], success[i] > 0)))
  state = state_lib.State(*[None] * 7).replace(params={})
  got = value_fit.fitted(trainer, state, masks).params['value']
  assert value.is_fitted(got)
  rows = np.arange(num) if num else np.linspace(0, 19, 10).astype(int)
  assert got.price == value.solve_price(
      value.predict(got, inputs[rows]), ratios, 0.75)


def test_the_ceiling_of_three_images_by_hand():
  success = np.float32([[0.9, 0.8], [0.9, 0.2], [0.3, 0.6]])
  correct = np.array([[True, True], [True, False], [False, True]])
  ratios = np.float32([1., 0.5])
  evaluator = types.SimpleNamespace(success=lambda params, split, masks: (
      np.zeros((3, 2), np.float32), success, correct))
  system = types.SimpleNamespace(
      cost=types.SimpleNamespace(ratio=lambda masks: ratios))
  blind = value.new(2, 2, (1, 1))._replace(bias=jnp.float32([0.6, 0.5]))
  got = ceiling.rows(evaluator, system, dict(value=blind), None, 0.75)
  assert got['interaction_r2'] == pytest.approx(0)
  # All images alike: with all layers they would take more than 0.75.
  assert got['value'] == pytest.approx(dict(accuracy=2 / 3, macs_ratio=0.5))
  # All layers for the second one only.
  assert got['oracle'] == pytest.approx(dict(accuracy=1, macs_ratio=2 / 3))
  assert got['cheapest'] == pytest.approx(
      dict(accuracy=2 / 3, macs_ratio=0.75))
