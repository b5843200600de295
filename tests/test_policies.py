"""Fixed, random and learned policies against the patent's equations."""

import functools
import itertools

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Tokens
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.policies import observation
from adavit_jax.runtime import modes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

B, N, D, K = 5, 4, 6, 4
NUM = L1, L2 = 3, 2
CLOSE = dict(rtol=1e-5, atol=1e-5)


def _sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize('number, num_msa, num_mlp', [
    (1, 5, 5), (2, 5, 3), (3, 3, 3), (4, 1, 2), (5, 0, 0)])
def test_table_1(number, num_msa, num_mlp):
  actions = fixed.table_1(number, (11, 10))
  for kept, num, total in zip(actions, (num_msa, num_mlp), (11, 10)):
    np.testing.assert_array_equal(kept, [0] * num + [1] * (total - num))
  last = fixed.table_1(number, (11, 10), which='last')
  np.testing.assert_array_equal(last.msa, actions.msa[::-1])
  np.testing.assert_array_equal(last.mlp, actions.mlp[::-1])


def test_drop_and_all_layers():
  np.testing.assert_array_equal(
      fixed.drop((4, 4), 1, 3).keep, [1, 1, 1, 0, 1, 0, 0, 0])
  np.testing.assert_array_equal(
      fixed.drop((4, 4), 1, 3, which='first').keep, [0, 1, 1, 1, 0, 0, 0, 1])
  np.testing.assert_array_equal(
      fixed.drop((2, 4), 1, 3).keep, [1, 0, 1, 0, 0, 0])
  np.testing.assert_array_equal(fixed.all_layers((2, 3)).keep, [1, 1, 1, 1, 1])
  np.testing.assert_array_equal(fixed.drop((2, 2), 2, 2).keep, [0, 0, 0, 0])
  np.testing.assert_array_equal(fixed.drop((0, 2), 0, 1).keep, [1, 0])


def test_actions_are_one_vector_and_back():
  keep = np.arange(10).reshape(2, 5)
  actions = Actions.from_keep(keep, (2, 3))
  np.testing.assert_array_equal(actions.msa, [[0, 1], [5, 6]])
  np.testing.assert_array_equal(actions.mlp, [[2, 3, 4], [7, 8, 9]])
  np.testing.assert_array_equal(actions.keep, keep)
  assert isinstance(actions.keep, np.ndarray)
  np.testing.assert_array_equal(actions.num_kept, [10, 35])
  np.testing.assert_array_equal(
      Actions.from_keep(keep[0], plan.num_layers(tiny.model())).msa, [0, 1, 2])


def test_parse():
  actions = fixed.parse('10101', (3, 2))
  np.testing.assert_array_equal(actions.msa, [1, 0, 1])
  np.testing.assert_array_equal(actions.mlp, [0, 1])


@pytest.mark.parametrize('call, fields', [
    (lambda: fixed.table_1(6, (11, 11)), 'policy 6'),
    (lambda: fixed.table_1(1, (4, 11)), '5 MSA and 5 MLP .* 4 and 11'),
    (lambda: fixed.table_1(1, (11, 4)), '5 MSA and 5 MLP .* 11 and 4'),
    (lambda: fixed.drop((4, 4), -1, 0), '-1 MSA'),
    (lambda: fixed.drop((4, 4), 1, 1, which='all'), "^which='all'"),
    (lambda: fixed.parse('1010', (3, 2)), "^keep='1010'.* 3 MSA, then 2 MLP"),
    (lambda: fixed.parse('101001', (3, 2)), "^keep='101001'"),
    (lambda: fixed.parse('1010x', (3, 2)), "^keep='1010x'"),
])
def test_wrong_calls(call, fields):
  with pytest.raises(ValueError, match=fields):
    call()


def test_stochastic_survival_falls_linearly_with_depth():
  num, final = 20_000, 0.2
  actions = jax.device_get(jax.jit(lambda key: fixed.stochastic(
      key, num, (4, 2), final=final))(jax.random.key(0)))
  probabilities = np.array([0.8, 0.6, 0.4, 0.2]), np.array([0.6, 0.2])
  for kept, survival, want in zip(
      actions, fixed.survival((4, 2), final), probabilities, strict=True):
    np.testing.assert_allclose(survival, want, rtol=1e-6)
    assert kept.shape == (num, len(want))
    error = np.sqrt(want * (1 - want) / num)
    assert (np.abs(kept.mean(0) - want) < 4 * error).all()
  # The two branches and the layers are dropped independently.
  correlation = np.corrcoef(actions.keep.T)[np.triu_indices(6, 1)]
  assert np.abs(correlation).max() < 5 / np.sqrt(num)


def test_uniform_meets_a_budget_of_macs():
  """MSA and MLP cost different amounts, the mean is right all the same."""
  num, budget = 20_000, 0.7
  spend = cost.of(tiny.model(mlp_ratio=4.))
  assert spend.msa != spend.mlp
  num_layers = len(spend.msa), len(spend.mlp)
  none = Actions(*map(np.zeros, num_layers))
  always = spend.adaptive(none)
  keep = (budget * spend.dense - always) / (spend.dense - always)
  actions = fixed.uniform(jax.random.key(0), num, num_layers, keep=keep)
  ratios = np.asarray(spend.ratio(actions))
  assert abs(ratios.mean() - budget) < 4 * ratios.std() / np.sqrt(num)
  assert ratios.std() > 0.02


def _nets(seed=0, **kwargs):
  """Networks with random parameters, token features and statistics."""
  nets = learned.PolicyNets(num_layers=NUM, num_classes=K, **kwargs)
  rng = np.random.default_rng(seed)
  z1 = rng.normal(size=(B, N, D)).astype(np.float32)
  x = observation.token_features(z1, nets.tokens, 1)
  stats = observation.Stats(
      *rng.uniform(0.5, 1, (2, x.shape[1])).astype(np.float32))
  shapes = jax.eval_shape(
      nets.init, jax.random.key(0), x, stats, jnp.zeros((B, K)))['params']
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  return nets, params, x, stats


def _apply(nets, params, *args, method):
  return jax.jit(functools.partial(nets.apply, method=method))(
      {'params': params}, *args)


def _tokens(z1, tokens, prefix=1):
  x = z1.astype(np.float64)
  x = x - x.mean(-1, keepdims=True)
  x /= np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6)
  if tokens == 'pooled' and not prefix:
    return x.mean(1)
  if tokens == 'pooled':
    return np.concatenate([x[:, 0], x[:, 1:].mean(1)], -1)
  return x.reshape(B, -1)


@pytest.mark.parametrize('prefix', [0, 1, 2])
@pytest.mark.parametrize('tokens', ['all', 'pooled'])
def test_token_features(tokens, prefix):
  """Without a class token, the mean over all tokens alone."""
  z1 = np.random.default_rng(0).normal(2, 3, (B, N, D)).astype(np.float32)
  got = observation.token_features(z1, tokens, prefix)
  np.testing.assert_allclose(got, _tokens(z1, tokens, prefix), **CLOSE)
  at = Tokens(width=D, num=N, prefix=prefix)
  assert got.shape == (B, observation.num_features(at, tokens))
  assert got.dtype == jnp.float32
  nets = learned.PolicyNets(NUM, K, tokens=tokens)
  assert nets.num_features(at) == got.shape[1]


def _difficulty(logits):
  p = np.exp(logits.astype(np.float64))
  p /= p.sum(-1, keepdims=True)
  log_p = np.log(p)
  ranked = np.sort(p, -1)
  entropy = -(p * log_p).sum(-1, keepdims=True) / np.log(K)
  return np.concatenate([
      np.tanh((log_p - log_p.mean(-1, keepdims=True)) / 4), ranked[:, -1:],
      entropy, ranked[:, -1:] - ranked[:, -2:-1]], -1)


@pytest.mark.parametrize('tokens, head', [
    ('all', False), ('pooled', False), ('pooled', True)])
def test_features_and_equations_6_to_10(tokens, head):
  nets, params, given, stats = _nets(
      tokens=tokens, head=head)
  answer = np.random.default_rng(2).normal(size=(B, K)).astype(np.float32)
  features = _apply(nets, params, given, stats, answer, method='features')

  p = jax.tree.map(lambda x: x.astype(np.float64), params)
  dense = lambda name, x: x @ p[name]['kernel'] + p[name]['bias']
  x = (np.float64(given) - stats.mean) / stats.std
  aux = dense('aux_head', x)
  inputs = np.concatenate([x * np.sqrt(0.03), _difficulty(aux)]
                          + [_difficulty(answer)] * head, -1)
  np.testing.assert_allclose(features.aux_logits, aux, **CLOSE)
  np.testing.assert_allclose(features.inputs, inputs, **CLOSE)
  np.testing.assert_allclose(features.fixed, np.concatenate(
      [x * np.sqrt(0.03)] + [_difficulty(answer)] * head, -1), **CLOSE)

  bound = 0.9
  a1 = np.random.default_rng(1).integers(0, 2, (B, L1)).astype(np.float32)
  logits = learned.action_logits(nets, params, features, Actions(a1, None))
  s1 = _sigmoid(dense('msa_net', inputs))  # (6)
  s2 = _sigmoid(dense('mlp_net', np.concatenate([inputs, a1], -1)))  # (9)
  for got, s, num in zip(logits, (s1, s2), NUM):
    assert got.shape == (B, num)
    want = bound * s + (1 - bound) * (1 - s)  # (7), (10)
    np.testing.assert_allclose(learned.bounded(got, bound), want, **CLOSE)
    assert want.min() > 0.1 - 1e-6 and want.max() < 0.9 + 1e-6
    np.testing.assert_allclose(
        learned.bounded(got, 1.), jax.nn.sigmoid(got), rtol=1e-6)


def test_hidden_layer_lies_beside_the_direct_path():
  nets, params, x, stats = _nets(aux=False, hidden=7)
  features = _apply(nets, params, x, stats, method='features')
  assert features.aux_logits is None
  assert features.inputs.shape == (B, N * D + 7)
  x = (np.float64(x) - stats.mean) / stats.std * np.sqrt(0.03)
  np.testing.assert_allclose(features.inputs[:, :N * D], x, **CLOSE)


def test_the_first_network_convolves_the_grid():
  """By NumPy; the class token and the second network see nothing of it."""
  width, conv, prefix, grid = D, 3, 1, (3, 1)
  nets, params, x, stats = _nets(aux=False, conv=conv, at=Tokens(
      width=width, num=N, prefix=prefix, grid=grid))
  features = _apply(nets, params, x, stats, method='features')
  got = _apply(nets, params, features, method='msa')

  gelu = jax.jit(jax.nn.gelu)

  def convolve(x, layer, stride):  # [rows, columns, C]
    kernel = np.float64(layer['kernel'])  # [3, 3, C, conv]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))
    out = np.einsum('yxcij,ijcd->yxd', windows, kernel) + layer['bias']
    # With stride 2, padding of an odd side puts the first center at 0.
    out = out[::stride, ::stride]
    return np.asarray(gelu(out), np.float64)

  inputs = np.float64(features.inputs)
  for row, logits in zip(inputs, got):
    patches = row[prefix * width:].reshape(*grid, width)
    hidden = convolve(convolve(patches, params['conv_1'], 1),
                      params['conv_2'], 2).mean((0, 1))
    net = params['msa_net']
    np.testing.assert_allclose(
        logits, np.concatenate([row, hidden]) @ net['kernel'] + net['bias'],
        **CLOSE)
  assert params['mlp_net']['kernel'].shape[0] == N * D + L1


def test_first_actions_follow_the_bias():
  for bias in (2., -2.):
    nets, _, x, stats = _nets(bias=bias)
    keep = jax.jit(lambda key, nets=nets, x=x, stats=stats: learned.greedy(
        nets, p := nets.init(key, x, stats)['params'], nets.apply(
            {'params': p}, x, stats, method='features')).keep)(
                jax.random.key(0))
    np.testing.assert_array_equal(keep, bias > 0)


def test_likelihoods_of_all_actions_sum_to_one():
  nets, params, x, stats = _nets()
  features = _apply(nets, params, x, stats, method='features')
  vectors = [np.float32(list(itertools.product((0, 1), repeat=num)))
             for num in NUM]

  @jax.jit
  def total(bound):
    def likelihood(a1, a2):
      actions = Actions(*(jnp.tile(a, (B, 1)) for a in (a1, a2)))
      logits = learned.action_logits(nets, params, features, actions)
      s = Actions(*(learned.bounded(x, bound) for x in logits))
      return jnp.exp(learned.log_likelihood(s.keep, actions.keep).sum(-1))
    pairs = jax.vmap(jax.vmap(likelihood, (None, 0)), (0, None))
    return pairs(*vectors).sum((0, 1))

  np.testing.assert_allclose(total(0.95), np.ones(B), rtol=1e-5)
  np.testing.assert_allclose(total(1.), np.ones(B), rtol=1e-4)


def test_likelihood_and_entropy_by_hand():
  s = jnp.float32([0.25, 0.25, 0.5])
  got = learned.log_likelihood(s, jnp.float32([1, 0, 1]))
  np.testing.assert_allclose(got, np.log([0.25, 0.75, 0.5]), rtol=1e-6)
  want = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75))] * 2 + [np.log(2)]
  np.testing.assert_allclose(learned.entropy(s), want, rtol=1e-6)


def test_likelihood_and_entropy_of_certain_decisions_are_finite():
  s = jnp.float32([1, 0])
  for function in (lambda x: learned.log_likelihood(x, s), learned.entropy):
    got, gradient = jax.jit(jax.value_and_grad(
        lambda x, function=function: function(x).sum()))(s)
    np.testing.assert_allclose(got, 0, atol=1e-4)
    assert np.isfinite(gradient).all()


def test_samples_follow_the_bounded_probabilities():
  nets, params, x, stats = _nets()
  features = _apply(nets, params, x, stats, method='features')
  num, bound = 20_000, 0.9
  free = Actions(np.float32([0, 1, 1]), np.float32([0, 1]))
  draw = lambda key: learned.sample(
      nets, params, features, key, bound=bound, free=free)
  actions = jax.device_get(jax.jit(lambda key: jax.vmap(draw)(
      jax.random.split(key, num)))(jax.random.key(0)))
  s = np.asarray(learned.bounded(
      _apply(nets, params, features, method='msa'), bound))
  error = np.sqrt(s * (1 - s) / num)
  gap = np.abs(actions.msa.mean(0) - s)
  assert (gap[:, 1:] < 4.5 * error[:, 1:]).all()
  # The MLP network is asked with the MSA actions of the same sample.
  chosen = (actions.msa == np.float32([1, 0, 1])).all(-1)
  image = int(chosen.sum(0).argmax())
  chosen = chosen[:, image]
  assert chosen.sum() > 500
  a1 = np.tile(np.float32([1, 0, 1]), (B, 1))
  s = np.asarray(learned.bounded(
      _apply(nets, params, features, a1, method='mlp'), bound))[image]
  got = actions.mlp[:, image][chosen].mean(0)
  error = np.sqrt(s * (1 - s) / chosen.sum())
  assert (np.abs(got - s)[1:] < 4.5 * error[1:]).all()
  # What the curriculum has not freed always runs.
  np.testing.assert_array_equal(actions.msa[..., 0], 1)
  np.testing.assert_array_equal(actions.mlp[..., 0], 1)
  everything = jax.jit(lambda key: learned.sample(
      nets, params, features, key, bound=0.5))(jax.random.key(0))
  assert [a.shape for a in everything] == [(B, L1), (B, L2)]


def test_greedy_thresholds():
  nets, params, x, stats = _nets()
  features = _apply(nets, params, x, stats, method='features')
  greedy = lambda **kwargs: learned.greedy(nets, params, features, **kwargs)
  rows = [greedy(threshold=t) for t in (0.001, 0.2, 0.5, 0.8, 0.999)]
  for low, high in zip(rows, rows[1:]):
    assert (low.msa >= high.msa).all()
  sums = [float(a.keep.sum()) for a in rows]
  assert sums[0] > sums[2] > sums[-1]
  for a in rows:
    s = _sigmoid(_apply(nets, params, features, a.msa, method='mlp'))
    assert a.mlp.shape == s.shape
  np.testing.assert_array_equal(
      rows[3].mlp, _sigmoid(_apply(nets, params, features, rows[3].msa,
                                   method='mlp')) >= 0.8)

  even = learned.greedy(nets, jax.tree.map(np.zeros_like, params), features)
  np.testing.assert_array_equal(even.keep, 1)

  forced = greedy(threshold=0.999, free=Actions(
      np.float32([0, 0, 1]), np.float32([1, 0])))
  np.testing.assert_array_equal(forced.msa[:, :2], 1)
  np.testing.assert_array_equal(forced.mlp[:, 1], 1)
  np.testing.assert_array_equal(forced.msa[:, 2], rows[-1].msa[:, 2])


def test_gradients_stop_at_z1_and_at_the_classifier():
  nets, params, x, stats = _nets(hidden=3)

  @jax.jit
  @jax.grad
  def of_inputs(both):
    params, x = both
    return _apply(nets, params, x, stats, method='features').inputs.sum()

  @jax.jit
  @jax.grad
  def of_classifier(both):
    params, x = both
    return _apply(nets, params, x, stats, method='features').aux_logits[0, 0]

  policy, tokens = of_inputs((params, x))
  np.testing.assert_array_equal(tokens, 0)
  np.testing.assert_array_equal(policy['aux_head']['kernel'], 0)
  assert np.abs(policy['hidden_layer']['kernel']).max() > 0
  policy, tokens = of_classifier((params, x))
  np.testing.assert_array_equal(tokens, 0)
  assert np.abs(policy['aux_head']['kernel']).max() > 0


def test_the_answer_of_the_head_must_be_given():
  nets, params, x, stats = _nets(head=True)
  with pytest.raises(ValueError, match='head=True.*head_logits'):
    _apply(nets, params, x, stats, method='features')


def _observed(model, images):
  """(jitted function of z1, parameters with a policy, z1, logits dropped)."""
  nets = learned.PolicyNets(
      num_layers=plan.num_layers(model), num_classes=4, head=True)
  params = {**tiny.params(model),
            **learned.init_params(nets, model, jax.random.key(0))}
  observe = jax.jit(
      lambda p, z1: learned.observe(nets, model, p, z1, images).inputs)
  z1 = jax.jit(lambda p: modes.before_policy(model, p, images))(params)
  none = Actions(*map(np.zeros, nets.num_layers))
  answer = jax.jit(lambda p: modes.forward(
      model, p, images, none).total)(params)
  return nets, observe, params, z1, np.asarray(answer)


@pytest.mark.parametrize('name', [
    'vit', pytest.param('ravit', marks=pytest.mark.nightly)])
def test_features_show_what_the_head_says_if_all_layers_are_dropped(name):
  """Of a ViT the head reads z1; of a RAViT the images come in once more."""
  model, size = tiny.model(distillation=True), 8
  if name == 'ravit':
    model, size = models.create(
        'ravit_cifar_patch4_32', image_size=16, channels=1, width=8,
        num_heads=2, num_classes=4), 16
  images = np.random.default_rng(0).normal(
      size=(B, size, size, 1)).astype(np.float32)
  nets, observe, params, z1, answer = _observed(model, images)
  got = observe(params, z1)
  at = plan.tokens_at(model, model.num_fixed)
  stats = params['policy_stats']
  np.testing.assert_allclose(
      got[:, :nets.num_features(at)], _tokens(np.asarray(z1), 'all')
      * np.sqrt(0.03), **CLOSE)
  assert stats.mean.shape == (nets.num_features(at),)
  np.testing.assert_allclose(got[:, -7:], _difficulty(answer), **CLOSE)
  gradient = jax.jit(jax.grad(lambda both: observe(*both).sum()))((params, z1))
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, 0)
