"""Rewards by hand, and the sampled gradient against the exact one."""

import functools
import itertools
import types

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import observation
from adavit_jax.policies import reinforce
from adavit_jax.train.phases import budget
from adavit_jax.train import config as config_lib
from adavit_jax.train.phases import policy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

NUM = 1, 2  # MSA and MLP layers
B, N, D = 2, 2, 3
BOUND, ALPHA, PRICE = 0.95, 1.5, 0.7
VECTORS = [np.float32(list(itertools.product((0, 1), repeat=num)))
           for num in NUM]  # [2^L1, L1], [2^L2, L2]
SAMPLES = 2  # an image and draw
DRAWS = 40_000

ACTIONS = Actions(np.float32([[1, 0, 0, 0], [1, 1, 1, 1]]),
                  np.float32([[1, 1, 0, 0], [1, 1, 1, 0]]))
CORRECT = np.float32([1, 0])


def test_layer_reward_is_equation_12():
  got = reinforce.layer_reward(ACTIONS, CORRECT, 2.5)
  np.testing.assert_allclose(got, [0.75 + 0.5 + 2.5, 0 + 0.25 + 0])


def test_layers_are_counted_as_shares_of_their_kind():
  actions = Actions(np.float32([[1, 0]]), np.float32([[1, 0, 0, 0]]))
  msa, mlp = reinforce.drop_reward(actions)
  np.testing.assert_allclose(msa, [0.5])
  np.testing.assert_allclose(mlp, [0.75])


def test_split_rewards_are_equations_15_and_16():
  """Each network with its own accuracy, all layers of the other's kind."""
  for got, want in zip(reinforce.split_actions(ACTIONS), (
      (ACTIONS.msa, np.ones((2, 4))), (np.ones((2, 4)), ACTIONS.mlp))):
    np.testing.assert_array_equal(got.msa, want[0])
    np.testing.assert_array_equal(got.mlp, want[1])
  msa, mlp = reinforce.split_rewards(ACTIONS, (CORRECT, 1 - CORRECT), 2.5)
  np.testing.assert_allclose(msa, [0.75 + 2.5, 0])
  np.testing.assert_allclose(mlp, [0.5, 0.25 + 2.5])


def test_mac_reward_by_hand():
  got = reinforce.mac_reward(np.array([0.5, 1.]), np.array([0.9, 0.2]), 0.4)
  np.testing.assert_allclose(got, [0.7, -0.2])


def test_baselines_by_hand():
  reward = np.array([[1., 0], [2, 0], [6, 3]])
  np.testing.assert_allclose(
      reinforce.leave_one_out(reward),
      [[1 - 4, -1.5], [2 - 3.5, -1.5], [6 - 1.5, 3]])
  np.testing.assert_allclose(
      reinforce.self_critical(reward, np.array([2., 1])),
      [[-1, -1], [0, -1], [4, 2]])


@pytest.mark.parametrize('progress, free', [
    (0., [0, 0, 0, 1]), (0.1, [0, 0, 0, 1]), (0.2, [0, 0, 1, 1]),
    (0.3, [0, 1, 1, 1]), (0.45, [1, 1, 1, 1]), (1., [1, 1, 1, 1])])
def test_curriculum_frees_the_last_encoders_first(progress, free):
  got = reinforce.curriculum(jnp.float32(progress), (4, 4), 0.5)
  np.testing.assert_array_equal(got, [free, free])


def test_no_curriculum_frees_all():
  msa, mlp = reinforce.curriculum(0., (3, 2), 0.)
  np.testing.assert_array_equal(msa, [1, 1, 1])
  np.testing.assert_array_equal(mlp, [1, 1])


def test_curriculum_of_fewer_mlp_layers():
  for progress, num_msa, num_mlp in ((0., 1, 1), (0.2, 2, 1), (0.3, 3, 2)):
    msa, mlp = reinforce.curriculum(jnp.float32(progress), (4, 2), 0.5)
    np.testing.assert_array_equal(msa, np.arange(4) >= 4 - num_msa)
    np.testing.assert_array_equal(mlp, np.arange(2) >= 2 - num_mlp)


def test_price_rises_while_the_logits_must_fall():
  update = lambda log_price, missing: float(
      budget.update_price(log_price, missing, 0.1))
  np.testing.assert_allclose(update(-1., -0.2), -0.98, rtol=1e-6)
  np.testing.assert_allclose(update(-1., 0.1), -1.01, rtol=1e-6)
  np.testing.assert_allclose(update(3., -1.), np.log(20), rtol=1e-6)
  np.testing.assert_allclose(update(-7., 1.), np.log(1e-3), rtol=1e-6)


@pytest.fixture(scope='module')
def toy():
  """Networks, parameters, features, and the results of every decision.

  The tables [B, 2^L1, 2^L2] of correctness and success give each pair of
  decisions a result of its own.
  """
  nets = learned.PolicyNets(num_layers=NUM, num_classes=2, aux=False)
  rng = np.random.default_rng(0)
  z1 = rng.normal(size=(B, N, D)).astype(np.float32)
  x = np.asarray(observation.token_features(z1, 'all', 1))
  stats = observation.Stats(
      np.zeros(N * D, np.float32), np.ones(N * D, np.float32))
  shapes = jax.eval_shape(nets.init, jax.random.key(0), x, stats)['params']
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  features = nets.apply({'params': params}, x, stats, method='features')
  shape = B, *(len(v) for v in VECTORS)
  correct = np.float32([[[1, 0, 1, 1], [0, 1, 0, 0]],
                        [[0, 1, 1, 0], [1, 0, 1, 1]]])
  assert correct.shape == shape
  success = rng.uniform(size=shape).astype(np.float32)
  return nets, params, features, policy.Results(correct, success)


def _ratio(actions):
  """MACs of three layers that differ."""
  return 0.2 + (actions.keep * np.float32([0.3, 0.1, 0.4])).sum(-1)


def _rewards(reward, results):
  """The reward of each network for every pair of decisions, by hand."""
  msa, mlp = (v.mean(-1) for v in VECTORS)
  if reward == 'split':  # equations 15 and 16
    r1 = (1 - msa) + ALPHA * results.correct[:, :, -1]  # all MLP layers
    r2 = (1 - mlp) + ALPHA * results.correct[:, -1]  # all MSA layers
    return r1[:, :, None] + 0 * mlp, r2[:, None] + 0 * msa[:, None]
  shared = np.zeros_like(results.success)
  for i, j in itertools.product(*map(range, shared.shape[1:])):
    actions = Actions(VECTORS[0][i], VECTORS[1][j])
    if reward == 'layers':  # equation 12
      shared[:, i, j] = (1 - msa[i]) + (1 - mlp[j]) + (
          ALPHA * results.correct[:, i, j])
    else:
      shared[:, i, j] = results.success[:, i, j] - PRICE * _ratio(actions)
  return shared, shared


def _exact(toy, reward):
  """Gradient of each network's negative expected reward, by enumeration."""
  nets, params, features, results = toy

  @jax.jit
  def loss(params, table):
    expected = 0.
    for i, j in itertools.product(*map(range, table.shape[1:])):
      actions = Actions(*(jnp.tile(v[k], (B, 1))
                          for v, k in zip(VECTORS, (i, j))))
      logits = learned.action_logits(nets, params, features, actions)
      msa, mlp = (learned.log_likelihood(learned.bounded(x, BOUND), a).sum(-1)
                  for x, a in zip(logits, actions))
      expected += jnp.exp(msa + mlp) * table[:, i, j]
    return -expected.mean()

  tables = _rewards(reward, results)
  return {net: jax.grad(loss)(params, table)[net]
          for net, table in zip(('msa_net', 'mlp_net'), tables)}


def _sampled(toy, reward, baseline):
  """Mean and standard error of the phase's gradient over `DRAWS` draws."""
  nets, params, features, results = toy
  config = config_lib.default_config()
  config.policy.update(
      reward=reward, baseline=baseline, samples=SAMPLES, alpha=ALPHA,
      bound=BOUND, entropy=0., normalize=False)
  system = types.SimpleNamespace(
      config=config, nets=nets, cost=types.SimpleNamespace(ratio=_ratio),
      decide=functools.partial(learned.greedy, nets))

  def loss(net_params, key):
    return policy.policy_gradient(
        system, config.policy, {'policy': net_params}, None, features,
        jnp.log(PRICE), None, key, 0.)[0]

  keys = jax.random.split(jax.random.key(1), DRAWS)
  grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys)
  grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
  mean = jax.tree.map(lambda g: g.mean(0), grads)
  error = jax.tree.map(lambda g: g.std(0) / np.sqrt(DRAWS), grads)
  return mean, error


# Other baselines and rewards are in test_phases, too.
_DAILY = (('none', 'split'),)


@pytest.mark.parametrize('baseline, reward', [
    pytest.param(*case, marks=() if case in _DAILY else pytest.mark.nightly)
    for case in itertools.product(
        ('none', 'leave_one_out', 'greedy'), ('macs', 'layers', 'split'))])
def test_sampled_gradient_is_the_exact_one(toy, monkeypatch, reward, baseline):
  """The whole estimator; only the model's results come from a table."""
  def run_tried(system, params, z1, batch, actions):
    del system, params, z1, batch
    i, j = ((a @ 2 ** np.arange(a.shape[-1])[::-1]).astype(int)
            for a in actions)  # [R, B]
    return jax.tree.map(
        lambda table: jnp.asarray(table)[np.arange(B), i, j], toy[-1])

  monkeypatch.setattr(policy, 'run_tried', run_tried)
  mean, error = _sampled(toy, reward, baseline)
  exact = _exact(toy, reward)
  assert sorted(mean) == ['mlp_net', 'msa_net']
  for net in mean:
    for leaf in ('kernel', 'bias'):
      m, e, want = (tree[net][leaf] for tree in (mean, error, exact))
      assert e.min() > 0
      assert (np.abs(m - want) < 4 * e).all(), (net, leaf)
      # The test can fail: neither zero nor the other sign would pass.
      assert np.abs(want / e).max() > 20, (net, leaf)


def test_the_loss_takes_the_advantage_as_constant():
  log_p = jnp.float32([[-1., -2.]])
  advantage = jnp.float32([[3., -4.]])
  value, (d_log_p, d_advantage) = jax.value_and_grad(
      reinforce.policy_gradient_loss, (0, 1))(log_p, advantage)
  np.testing.assert_allclose(value, (3 - 8) / 2)
  np.testing.assert_allclose(d_log_p, [[-1.5, 2.]])
  np.testing.assert_array_equal(d_advantage, 0)
