"""The MACs of a batch are led to their target."""

from adavit_jax.policies import learned
from adavit_jax.train.phases import budget
import jax
import numpy as np
from one_batch import batch, make_system, state, z1
import pytest


@pytest.mark.parametrize('target', [
    pytest.param(0.45, marks=pytest.mark.nightly), 0.6,
    pytest.param(0.75, marks=pytest.mark.nightly)])
def test_the_missing_shift_meets_the_target(state, batch, z1, target):
  system = make_system(mac_target=target)
  policy = state.params['policy']

  @jax.jit
  def run(params, z1):
    features = system.features(params, z1, batch.images)
    missing = budget.missing_shift(system, policy, features)
    spent = lambda shift: system.cost.ratio(system.decide(
        learned.shifted(policy, shift), features)).mean()
    return missing, spent(0.), spent(missing - 1e-3), spent(missing + 1e-3)

  missing, now, below, above = run(state.params, z1)
  assert below <= target <= above  # of single decisions of four images
  assert (missing > 0) == (now < target)
  if below == above:
    np.testing.assert_allclose(below, target, atol=1e-6)


def test_what_is_out_of_reach_is_bounded(state, batch, z1):
  system = make_system(mac_target=1e-3)
  run = jax.jit(lambda params, z1: budget.missing_shift(
      system, params['policy'], system.features(params, z1, batch.images)))
  np.testing.assert_allclose(run(state.params, z1), -2, atol=1e-3)


def test_the_share_falls_to_a_tenth():
  got = [float(budget.share(0.2, p)) for p in (0., 0.5, 0.9, 1.)]
  np.testing.assert_allclose(got, [0.2, 0.1, 0.02, 0.02], rtol=1e-5)


def test_shifted_moves_all_logits_of_both_networks(state, batch, z1):
  system = make_system()
  policy = state.params['policy']
  features = jax.jit(lambda params: system.features(
      params, z1, batch.images))(state.params)
  actions = system.decide(policy, features)
  logits = lambda p: learned.action_logits(system.nets, p, features, actions)
  for a, b in zip(logits(policy), logits(learned.shifted(policy, 0.7))):
    np.testing.assert_allclose(b, a + 0.7, rtol=1e-5)
