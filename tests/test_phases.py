"""The losses of the phases against what they are made of."""

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.train import losses
from adavit_jax.train import training_pass
from adavit_jax.train.phases import budget
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import policy
from adavit_jax.train.phases import static
from adavit_jax.train.phases import warm_start
import jax
import jax.numpy as jnp
import numpy as np
from one_batch import B
from one_batch import batch  # a fixture
from one_batch import classify  # a fixture
from one_batch import KEY
from one_batch import log_softmax
from one_batch import make_system
from one_batch import state  # a fixture
from one_batch import z1  # a fixture
import pytest
import tiny


@pytest.mark.parametrize('width', [
    pytest.param(6, marks=pytest.mark.nightly), 70])
def test_num_unique(width):
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 2, (20, width)).astype(np.float32)
  for keep in (rows[rng.integers(0, 20, 64)], rows[:1], np.zeros_like(rows)):
    want = len(np.unique(keep, axis=0))
    assert policy.num_unique(jnp.asarray(keep)) == want


def _plain_cross_entropy(classify, batch):
  logits = classify(Actions(np.ones(3, np.float32), np.ones(3, np.float32)))
  targets = np.asarray(batch.targets, np.float64)
  ce = -(targets * log_softmax(logits)).sum(-1).mean()
  return ce, (logits.argmax(-1) == batch.labels).mean()


def test_bare_dense_loss_is_cross_entropy(state, batch, classify):
  system = make_system(**{'dense.nested': 0., 'dense.mask_weight': 0.,
                          'dense.drop_path': 0.})
  got, (metrics, updates) = jax.jit(
      lambda p: dense.loss(system, p, state, batch, KEY, 0.))(state.params)
  ce, accuracy = _plain_cross_entropy(classify, batch)
  np.testing.assert_allclose(got, ce, rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], accuracy)
  assert sorted(metrics) == ['accuracy', 'loss'] and not updates


def test_nested_loss_is_the_mean_over_depths(state, batch, classify):
  system = make_system(**{'dense.nested': 0.5, 'dense.mask_weight': 0.,
                          'dense.drop_path': 0.})
  total, (metrics, _) = jax.jit(
      lambda p: dense.loss(system, p, state, batch, KEY, 0.))(state.params)
  depths = []
  for depth in range(3):
    kept = np.float32(np.arange(3) < depth)
    depths.append(losses.cross_entropy(
        classify(Actions(kept, kept)), batch.targets))
  np.testing.assert_allclose(
      metrics['nested_loss'], np.mean(depths), rtol=1e-5)
  np.testing.assert_allclose(
      total, metrics['loss'] + 0.5 * np.mean(depths), rtol=1e-5)


def test_drop_path_gates_keep_the_mean():
  gates = dense.drop_path(jax.random.key(0), 40_000, (4, 2), 0.4)
  for gate, survival in zip(gates, ([0.9, 0.8, 0.7, 0.6], [0.8, 0.6])):
    survival = np.array(survival)
    assert gate.shape == (40_000, len(survival))
    np.testing.assert_allclose((gate > 0).mean(0), survival, atol=0.01)
    np.testing.assert_allclose(gate.max(0), 1 / survival, rtol=1e-6)
  np.testing.assert_array_equal(dense.drop_path(KEY, 2, (3, 2), 0.).keep, 1)


@pytest.fixture(scope='module')
def path_loss(state, batch):
  system = make_system(**{'joint.distill': 0.25, 'joint.temperature': 2.,
                          'joint.representation': 2.})

  @jax.jit
  def loss(params, teacher, actions):
    start = training_pass.begin(system, params, batch.images)
    total, (metrics, updates) = joint.path_loss(
        system, system.config.joint, params, start, teacher, batch, actions)
    assert not updates
    return total, metrics

  return lambda teacher, actions: loss(state.params, teacher, actions)


def test_path_loss_of_a_model_that_teaches_itself(
    state, batch, classify, path_loss):
  ones = jnp.ones((B, 3))
  total, metrics = path_loss(state.teacher, Actions(ones, ones))
  ce, accuracy = _plain_cross_entropy(classify, batch)
  np.testing.assert_allclose(metrics['distill_loss'], 0, atol=1e-6)
  np.testing.assert_allclose(metrics['representation_loss'], 0, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], ce, rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], accuracy)
  np.testing.assert_allclose(total, 0.75 * ce, rtol=1e-5)


def test_path_loss_weighs_its_terms(batch, state, classify, path_loss):
  teacher = jax.tree.map(lambda x: 1.1 * x, state.teacher)
  actions = Actions(jnp.tile(jnp.float32([1, 0, 1]), (B, 1)),
                    jnp.tile(jnp.float32([0, 1, 1]), (B, 1)))
  total, metrics = path_loss(teacher, actions)
  want = (0.75 * metrics['loss'] + 0.25 * metrics['distill_loss']
          + 2 * metrics['representation_loss'])
  np.testing.assert_allclose(total, want, rtol=1e-5)
  taught = jax.jit(tiny.model().apply)(
      {'params': teacher['backbone']}, batch.images).total
  student = classify(actions)
  np.testing.assert_allclose(
      metrics['loss'], losses.cross_entropy(student, batch.targets), rtol=1e-5)
  np.testing.assert_allclose(
      metrics['distill_loss'],
      losses.distillation(student, taught, temperature=2.), rtol=1e-4)
  assert min(metrics['distill_loss'], metrics['representation_loss']) > 1e-3


def test_one_head_learns_the_mean_of_the_teachers_two(batch):
  """A model whose heads agree, taught by itself, has nothing to learn."""
  system = make_system(**{'model.distillation': True, 'joint.distill': 0.5,
                          'joint.temperature': 2., 'joint.representation': 0.})
  vit = tiny.params(system.model)['backbone']
  vit['head_dist'] = vit['head']
  kept = jnp.tile(jnp.float32([1, 1, 1]), (B, 1))
  @jax.jit
  def loss(vit, teacher):
    # Alike in all but what the distillation token differs in.
    same = lambda p: {'backbone': {
        **p, 'dist': p['cls'], 'pos_embedding':
        p['pos_embedding'].at[:, 1].set(p['pos_embedding'][:, 0])}}
    params = same(vit)
    return joint.path_loss(
        system, system.config.joint, params,
        training_pass.begin(system, params, batch.images), same(teacher), batch,
        Actions(kept, kept))[1][0]
  np.testing.assert_allclose(loss(vit, vit)['distill_loss'], 0, atol=1e-6)
  other = {**vit, 'head_dist': jax.tree.map(lambda x: 2 * x, vit['head'])}
  assert loss(other, vit)['distill_loss'] > 1e-2


def test_static_loss_is_the_path_loss_of_its_policy(state, batch, path_loss):
  path = {'static.distill': 0.25, 'static.temperature': 2.,
          'static.representation': 2., 'static.survival': 1.}
  masked = make_system(
      **path, **{'static.policy': 'mask', 'static.keep': '101011'})
  sampled = make_system(**path, **{'static.policy': 'stochastic'})

  @jax.jit
  def losses_of(p):
    return [static.loss(s, p, state, batch, KEY, 0.) for s in (masked, sampled)]

  (mask, (metrics, _)), (all_kept, _) = losses_of(state.params)
  keep = Actions(jnp.tile(jnp.float32([1, 0, 1]), (B, 1)),
                 jnp.tile(jnp.float32([0, 1, 1]), (B, 1)))
  np.testing.assert_allclose(
      mask, path_loss(state.teacher, keep)[0], rtol=1e-5)
  np.testing.assert_allclose(
      metrics['macs_ratio'], masked.plain_cost.ratio(keep).mean(), rtol=1e-6)
  ones = Actions(*(jnp.ones((B, 3)),) * 2)
  np.testing.assert_allclose(
      all_kept, path_loss(state.teacher, ones)[0], rtol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize('reward, baseline', [
    ('macs', 'leave_one_out'), ('split', 'greedy'), ('layers', 'none')])
def test_policy_gradient_image_by_image(
    state, batch, z1, classify, reward, baseline):
  """The batched gradient against one written out for single images."""
  system = make_system(**{
      'policy.reward': reward, 'policy.baseline': baseline,
      'policy.samples': 3, 'policy.entropy': 0.1, 'policy.aux': 0.5,
      'nets.threshold': 0.7})
  c, nets = system.config.policy, system.nets
  free = Actions(np.float32([0, 1, 1]), np.float32([0, 0, 1]))
  features_of = lambda p: system.features(
      {**state.params, 'policy': p}, z1, batch.images)

  def loss(params, free=free):
    z1 = modes.before_policy(system.model, params, batch.images)
    return policy.policy_gradient(
        system, c, params, z1, system.features(params, z1, batch.images),
        state.log_price, batch, KEY, 0., free)

  grads, (metrics, updates) = jax.jit(
      jax.grad(loss, has_aux=True))(state.params)
  got = grads['policy']
  # The ViT learns nothing from rewards.
  for leaf in jax.tree.leaves(grads['backbone']):
    np.testing.assert_array_equal(leaf, 0)

  @jax.jit
  def draw(p):
    features = features_of(p)
    drawn = [learned.sample(nets, p, features, key, bound=c.bound, free=free)
             for key in jax.random.split(KEY, c.samples)]
    greedy = [learned.greedy(nets, p, features, threshold=t, free=free)
              for t in (0.7, 0.5)]
    return drawn, *greedy

  # On the host: XLA of jax 0.7.2 folds a comparison of a constant's columns
  # wrongly.
  draws, greedy, other = jax.device_get(draw(state.params['policy']))

  def rewards_of(actions):  # -> [B, 2]
    logits = np.asarray(classify(actions))
    spent = np.asarray(system.cost.ratio(actions))
    every = np.ones_like(actions.msa)
    alone = [np.asarray(classify(a)) for a in (
        Actions(actions.msa, every), Actions(every, actions.mlp))]
    rows = []
    for i, label in enumerate(np.asarray(batch.labels)):
      dropped = [1 - a[i].mean() for a in actions]
      if reward == 'macs':
        p = np.exp(log_softmax(logits[i]))[label]
        rows.append([p - np.exp(-1.) * spent[i]] * 2)
      elif reward == 'layers':
        rows.append(
            [sum(dropped) + c.alpha * (logits[i].argmax() == label)] * 2)
      else:
        rows.append([drop + c.alpha * (y[i].argmax() == label)
                     for drop, y in zip(dropped, alone)])
    return np.array(rows)

  table = np.array([rewards_of(a) for a in draws])
  if baseline == 'greedy':
    base = rewards_of(greedy)
  elif baseline == 'none':
    base = 0.
  else:
    base = (table.sum(0) - table) / (c.samples - 1)
  advantage = np.float32(table - base)  # [S, B, 2]
  advantage /= np.maximum(advantage.std((0, 1)), 1e-3)

  def written_out(p):
    features = features_of(p)
    total = 0.5 * losses.cross_entropy(features.aux_logits, batch.targets)
    for a, adv in zip(draws, advantage):
      logits = learned.action_logits(nets, p, features, a)
      for net in range(2):
        s = learned.bounded(logits[net], c.bound)[:, free[net] > 0]
        drawn = a[net][:, free[net] > 0]
        log_p = jnp.where(drawn > 0, jnp.log(s), jnp.log(1 - s))
        entropy = -(s * jnp.log(s) + (1 - s) * jnp.log(1 - s))
        total -= (log_p.sum(-1) * adv[:, net]
                  + 0.1 * entropy.sum(-1)).sum() / (c.samples * B)
    return total

  want = jax.jit(jax.grad(written_out))(state.params['policy'])
  for net in ('msa_net', 'mlp_net', 'aux_head'):
    assert np.abs(want[net]['bias']).max() > 1e-2
    for leaf in ('kernel', 'bias'):
      np.testing.assert_allclose(
          got[net][leaf], want[net][leaf], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(metrics['reward'], table.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['keep_msa'], greedy.msa.mean(0), rtol=1e-6)
  spent, more = (system.cost.ratio(a).mean() for a in (greedy, other))
  assert spent < more
  np.testing.assert_allclose(metrics['macs_ratio'], spent, rtol=1e-6)
  if reward == 'macs':  # It rests until all encoders are free.
    np.testing.assert_array_equal(updates['log_price'], state.log_price)
    assert updates['shift'] == 0
    _, (metrics, updates) = jax.jit(loss)(
        state.params, Actions(*map(np.ones_like, free)))
    missing = updates['shift'] / c.shift_rate
    np.testing.assert_allclose(
        updates['log_price'], budget.update_price(
            state.log_price, missing, c.price_rate), rtol=1e-5)
    assert updates['log_price'] != state.log_price
  else:
    assert not updates
