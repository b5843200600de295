"""Rewards by hand, and the sampled gradient against the exact one."""

import itertools

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import observation
from adavit_jax.policies import reinforce
import jax
import jax.numpy as jnp
import numpy as np
import pytest

L, B, N, D = 2, 2, 2, 3
BOUND = 0.95
VECTORS = np.float32(list(itertools.product((0, 1), repeat=L)))  # [2^L, L]
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
  msa, mlp = reinforce.split_rewards(ACTIONS, CORRECT, 2.5)
  np.testing.assert_allclose(msa, [0.75 + 2.5, 0])
  np.testing.assert_allclose(mlp, [0.5 + 2.5, 0.25])


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


def test_price_rises_while_too_much_is_spent():
  update = lambda log_price, spent: float(
      reinforce.update_price(log_price, spent, 0.5, 0.1))
  np.testing.assert_allclose(update(-1., 0.7), -0.98, rtol=1e-6)
  np.testing.assert_allclose(update(-1., 0.4), -1.01, rtol=1e-6)
  np.testing.assert_allclose(update(3., 1.), np.log(20), rtol=1e-6)
  np.testing.assert_allclose(update(-7., 0.), np.log(1e-3), rtol=1e-6)


@pytest.fixture(scope='module')
def toy():
  """Networks, parameters, features, statistics, and two reward tables.

  The tables [B, 2^L, 2^L] give each pair of decisions a reward of its own, so
  that no shortcut of the estimator goes unseen.
  """
  nets = learned.PolicyNets(num_layers=(L, L), num_classes=2, aux=False)
  rng = np.random.default_rng(0)
  z1 = rng.normal(size=(B, N, D)).astype(np.float32)
  x = np.asarray(observation.token_features(z1, 'all', 1))
  stats = observation.Stats(
      np.zeros(N * D, np.float32), np.ones(N * D, np.float32))
  shapes = jax.eval_shape(nets.init, jax.random.key(0), x, stats)['params']
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  tables = rng.normal(size=(2, B, 2**L, 2**L), loc=1.).astype(np.float32)
  return nets, params, x, stats, tables


def _features(nets, params, x, stats):
  return nets.apply({'params': params}, x, stats, method='features')


def _log_likelihoods(nets, params, features, actions):
  """log π of the MSA and of the MLP actions, [B] each."""
  logits = learned.action_logits(nets, params, features, actions)
  return [learned.log_likelihood(learned.bounded(x, BOUND), a).sum(-1)
          for x, a in zip(logits, actions)]


@pytest.fixture(scope='module')
def exact(toy):
  """Gradient of the negative expected reward, by enumeration.

  Of each network with respect to its own reward (equations 15 and 16).
  """
  nets, params, x, stats, tables = toy

  def loss(params, table):
    features = _features(nets, params, x, stats)
    expected = 0.
    for i, j in itertools.product(range(2**L), repeat=2):
      actions = Actions(*(jnp.tile(VECTORS[k], (B, 1)) for k in (i, j)))
      msa, mlp = _log_likelihoods(nets, params, features, actions)
      expected += jnp.exp(msa + mlp) * table[:, i, j]
    return -expected.mean()

  grad = jax.jit(jax.grad(loss))
  return {'msa_net': grad(params, tables[0])['msa_net'],
          'mlp_net': grad(params, tables[1])['mlp_net']}


def _sampled(toy, baseline):
  """Mean and standard error of the loss's gradient over `DRAWS` draws."""
  nets, params, x, stats, tables = toy
  powers = 2 ** np.arange(L)[::-1]
  every = Actions(jnp.ones(L), jnp.ones(L))

  def rewards(actions):  # [..., B, L] -> two of [..., B]
    i, j = ((a @ powers).astype(int) for a in actions)
    return [table[jnp.arange(B), i, j] for table in jnp.asarray(tables)]

  def loss(params, key):
    features = _features(nets, params, x, stats)
    draw = lambda key: learned.sample(
        nets, params, features, key, bound=BOUND, free=every)
    actions = jax.vmap(draw)(jax.random.split(key, SAMPLES))  # [S, B, L]
    log_p = jax.vmap(
        lambda a: jnp.stack(_log_likelihoods(nets, params, features, a)),
        out_axes=1)(actions)  # [2, S, B]
    greedy = rewards(learned.greedy(nets, params, features))
    total = 0.
    for one_log_p, reward, one_greedy in zip(log_p, rewards(actions), greedy):
      advantage = {
          'none': lambda: reward,
          'leave_one_out': lambda: reinforce.leave_one_out(reward),
          'greedy': lambda: reinforce.self_critical(reward, one_greedy),
      }[baseline]()
      total += reinforce.policy_gradient_loss(one_log_p, advantage)
    return total

  keys = jax.random.split(jax.random.key(1), DRAWS)
  grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys)
  grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
  mean = jax.tree.map(lambda g: g.mean(0), grads)
  error = jax.tree.map(lambda g: g.std(0) / np.sqrt(DRAWS), grads)
  return mean, error


@pytest.mark.parametrize('baseline', ['none', 'leave_one_out', 'greedy'])
def test_sampled_gradient_is_the_exact_one(toy, exact, baseline):
  mean, error = _sampled(toy, baseline)
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
