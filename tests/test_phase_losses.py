"""Whole losses of the phases, and their step, against loops over images."""

import dataclasses
import functools

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.policies import value as value_lib
from adavit_jax.train import losses
from adavit_jax.train import optimizer
from adavit_jax.train import phases
from adavit_jax.train import step as step_lib
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import exits
from adavit_jax.train.phases import joint
from adavit_jax.train.phases import policy
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
from one_batch import NUM_LAYERS
from one_batch import state  # a fixture
from one_batch import z1  # a fixture
import pytest

ONES = np.ones(3, np.float32)


def _binary_cross_entropy(logits, targets):
  logits = np.asarray(logits, np.float64)
  return np.log1p(np.exp(logits)) - targets * logits


def _features_and_decisions(system, params, z1, images):
  """What the policy sees, and decides at thresholds of 0.7 and 0.5."""
  features = system.features(params, z1, images)
  return features, *(
      learned.greedy(system.nets, params['policy'], features, threshold=t)
      for t in (0.7, 0.5))


def _check_counted(system, metrics, greedy, other):
  """The MACs are those of the greedy actions, and not of the other ones."""
  spent, more = (system.cost.ratio(a).mean() for a in (greedy, other))
  assert spent < more
  np.testing.assert_allclose(metrics['macs_ratio'], spent, rtol=1e-6)


def test_masked_rows_learn_from_their_own_image(state, batch, classify):
  """The dense loss's masked term, image by image under the mask drawn."""
  num, weight, key = 2, 0.25, jax.random.key(14)
  system = make_system(**{
      'dense.nested': 0., 'dense.drop_path': 0., 'dense.mask_weight': weight,
      'dense.random_masks': num / B})
  total, (metrics, _) = jax.jit(
      lambda p: dense.loss(system, p, state, batch, key, 0.))(state.params)
  _, mask_key, rate_key, _ = jax.random.split(key, 4)
  keep = jax.random.uniform(rate_key, (num, 1), minval=0.1)
  masks = Actions(*(np.float32(jax.random.bernoulli(k, keep, (num, 3)))
                    for k in jax.random.split(mask_key)))
  full = log_softmax(classify(Actions(ONES, ONES)))
  terms = []
  for i, *mask in zip((0, B // 2), *masks):  # the first of each half
    log_p = log_softmax(classify(Actions(*mask)))[i]
    ce = -(batch.targets[i] * log_p).sum()
    kl = (np.exp(full[i]) * (full[i] - log_p)).sum()
    assert kl > 1e-2
    terms.append((ce + kl) / 2)
  np.testing.assert_allclose(
      metrics['masked_loss'], np.mean(terms), rtol=1e-5)
  np.testing.assert_allclose(
      total, metrics['loss'] + weight * np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize('size, num', [(8, 4), (8, 3), (6, 4), (8, 8), (8, 0)])
def test_rows_of_images_with_a_second_row(size, num):
  rows, x = dense.Rows(size, num), np.arange(2 * size).reshape(size, 2)
  chosen = np.asarray(rows.chosen(x))
  # Each group of images has its share of them, the first ones.
  groups = np.split(x, np.gcd(size, num))
  np.testing.assert_array_equal(chosen, np.concatenate(
      [group[:num // len(groups)] for group in groups]))
  both = rows.join(x, -chosen)
  assert both.shape == (size + num, 2)
  for got, want in zip(rows.split(both), (x, -chosen)):
    np.testing.assert_array_equal(got, want)


def test_the_exits_of_a_model_with_one_are_plain_training(
    state, batch, classify):
  system = make_system(**{'dense.nested': 0., 'dense.mask_weight': 0.,
                          'dense.drop_path': 0.})

  @jax.jit
  def grads_of(params):
    grad = lambda module: jax.value_and_grad(
        lambda p: module.loss(system, p, state, batch, KEY, 0.)[0])(params)
    return grad(exits), grad(dense)

  (total, grads), plain = grads_of(state.params)
  want = losses.cross_entropy(classify(Actions(ONES, ONES)), batch.targets)
  np.testing.assert_allclose(total, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-5), (total, grads), plain)


def test_warm_start_image_by_image(state, batch, z1):
  """The networks imitate the masks that the value policy chooses."""
  system = make_system(**{'nets.threshold': 0.7})
  total, (metrics, updates) = jax.jit(
      lambda p: warm_start.loss(system, p, state, batch, KEY, 0.))(state.params)
  features, *greedy = jax.jit(functools.partial(
      _features_and_decisions, system))(state.params, z1, batch.images)
  net = lambda name, x: np.asarray(
      x @ state.params['policy'][name]['kernel']
      + state.params['policy'][name]['bias'])
  value = state.params['value']
  keep, ratios = np.asarray(value.masks.keep), system.cost.ratio(value.masks)
  predicted = np.asarray(features.fixed @ value.kernel + value.bias)
  price = value_lib.solve_price(predicted, ratios, system.config.mac_target)
  best = (predicted - price * ratios).argmax(1)
  imitation = []
  for x, target in zip(features.inputs, keep[best]):
    logits = np.concatenate([
        net('msa_net', x), net('mlp_net', np.concatenate([x, target[:3]]))])
    imitation.append(_binary_cross_entropy(logits, target).sum())
  aux = losses.cross_entropy(features.aux_logits, batch.targets)
  np.testing.assert_allclose(
      metrics['imitation_loss'], np.mean(imitation), rtol=1e-5)
  np.testing.assert_allclose(total, np.mean(imitation) + aux, rtol=1e-5)
  np.testing.assert_allclose(
      updates['log_price'], 0.95 * -1 + 0.05 * np.log(price), rtol=1e-5)
  _check_counted(system, metrics, *greedy)


@pytest.mark.parametrize('target, bound', [(1., 1e-3), (0.01, 20.)])
def test_the_price_that_the_warm_start_hands_on_is_bounded(
    state, batch, target, bound):
  """A budget that all masks or none meet would find a price beyond."""
  system = make_system(mac_target=target)
  updates = jax.jit(lambda p: warm_start.loss(
      system, p, state, batch, KEY, 0.)[1][1])(state.params)
  np.testing.assert_allclose(
      updates['log_price'], 0.95 * -1 + 0.05 * np.log(bound), rtol=1e-5)


def test_the_curriculum_frees_the_last_encoders_first(state, batch):
  """What it still forces to run is kept and has no gradient."""
  system = make_system(**{'policy.curriculum': 1.})

  @jax.jit
  def grad(done):
    loss = lambda p: policy.loss(
        system, {**state.params, 'policy': p}, state, batch, KEY, done)
    return jax.grad(loss, has_aux=True)(state.params['policy'])

  steps = system.config.policy.steps
  for progress, forced in ((0., 2), (0.5, 1), (1., 0)):
    grads, (metrics, _) = grad(progress * steps)
    for net in ('msa_net', 'mlp_net'):
      moved = np.abs(grads[net]['kernel']).max(0)
      np.testing.assert_array_equal(moved[:forced], 0)
      assert moved[forced:].min() > 1e-4
      np.testing.assert_array_equal(metrics[f'keep_{net[:3]}'][:forced], 1)


def test_a_share_of_the_images_learns_under_sampled_actions(
    state, batch, z1, classify):
  """The joint loss: REINFORCE, and the ViT's under greedy or drawn actions."""
  system = make_system(**{'joint.distill': 0., 'nets.threshold': 0.7})
  c, nets = system.config.joint, system.nets
  rl_key, sample_key, *_ = jax.random.split(KEY, 4)

  @jax.jit
  def run(params, z1, share):
    with system.config.ignore_type():
      system.config.joint.sampled = share  # traced: one program for all
    features, greedy, other = _features_and_decisions(
        system, params, z1, batch.images)
    rl, _ = policy.policy_gradient(
        system, c, params, z1, features, state.log_price, batch, rl_key, 0.)
    actions = (greedy,
               learned.sample(nets, params['policy'], features, sample_key,
                              bound=c.bound), other)
    return rl, actions, joint.loss(system, params, state, batch, KEY, 0.)

  seen = []
  for share in (0., 1.):
    rl, actions, (total, (metrics, _)) = run(state.params, z1, share)
    ce = losses.cross_entropy(classify(actions[int(share)]), batch.targets)
    np.testing.assert_allclose(metrics['loss'], ce, rtol=1e-5)
    np.testing.assert_allclose(total, rl + ce, rtol=1e-5)
    _check_counted(system, metrics, actions[0], actions[2])
    seen.append(ce)
  assert abs(seen[0] - seen[1]) > 1e-2


def test_the_model_learns_under_the_masks_of_a_value_policy(
    state, batch, z1, classify):
  """The joint loss without REINFORCE: the chosen masks, or random ones."""
  system = make_system(**{'joint.distill': 0., 'nets.decide': 'value'})
  value = state.params['value']
  keep, ratios = np.asarray(value.masks.keep), system.cost.ratio(value.masks)

  @jax.jit
  def run(params, share):
    with system.config.ignore_type():
      system.config.joint.sampled = share  # traced: one program for both
    features = system.features(params, z1, batch.images)
    return features.fixed, jax.value_and_grad(lambda p: joint.loss(
        system, p, state, batch, KEY, 0.), has_aux=True)(params)

  chosen, drawn = (run(state.params, share) for share in (0., 1.))
  predicted = np.asarray(chosen[0] @ value.kernel + value.bias)
  price = value_lib.solve_price(predicted, ratios, system.config.mac_target)
  best = np.asarray((predicted - price * ratios).argmax(1))
  of = lambda rows: losses.cross_entropy(
      classify(Actions.from_keep(keep[rows], NUM_LAYERS)), batch.targets)
  (total, (metrics, updates)), grads = chosen[1]
  np.testing.assert_allclose(total, of(best), rtol=1e-5)
  np.testing.assert_allclose(metrics['price'], price, rtol=1e-5)
  np.testing.assert_allclose(
      metrics['macs_ratio'], ratios[best].mean(), rtol=1e-5)
  assert 'log_price' not in updates
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads['policy'])) == 0
  rows = jax.random.randint(
      jax.random.split(KEY, 4)[1], (B,), 0, len(ratios))
  np.testing.assert_allclose(drawn[1][0][0], of(np.asarray(rows)), rtol=1e-5)
  assert abs(total - drawn[1][0][0]) > 1e-2


def test_the_policy_moves_by_a_factor_of_its_own_in_the_joint_phase(
    state, monkeypatch):
  """And without decay: the first step of Adam, whatever size the loss has."""
  def loss(system, params, *_):
    return sum(x.sum() for x in jax.tree.leaves(params)), ({}, {})

  monkeypatch.setitem(
      phases.PHASES, 'joint', dataclasses.replace(joint.PHASE, loss=loss))
  images, labels = jnp.zeros((B, 8, 8, 1), jnp.uint8), jnp.zeros(B, int)
  params = {group: {'bias': jnp.zeros(2), 'kernel': jnp.ones((2, 2))}
            for group in ('backbone', 'policy')}
  begin = state.replace(params=params, step=jnp.int32(0), key=KEY)
  for factor in (1., 4.):
    system = make_system(**{'joint.policy_lr_factor': factor,
                            'joint.weight_decay': 0.5})

    @jax.jit
    def step():
      return step_lib.make_step(system, 'joint', 0)(
          step_lib.begin_phase(system, begin, 'joint'), images, labels)

    end, metrics = step()
    rate = metrics['learning_rate']
    for group, leaf, moved in (
        ('backbone', 'bias', 1.), ('backbone', 'kernel', 1.5),
        ('policy', 'bias', factor), ('policy', 'kernel', factor)):
      np.testing.assert_allclose(
          params[group][leaf] - end.params[group][leaf], moved * rate,
          rtol=1e-3)


def test_muon_knows_which_groups_are_stacks(monkeypatch):
  make, seen = optimizer.make_optimizer, []
  def record(*args, stacks, **options):
    seen.append(stacks)
    return make(*args, stacks=stacks, **options)
  monkeypatch.setattr(optimizer, 'make_optimizer', record)
  ravit = {'model.name': 'ravit_cifar_patch4_32', 'model.depth': None,
           'model.image_size': 8, 'model.layers': (1, 1)}
  for fields in ({}, ravit):
    system = make_system(**fields)
    step_lib.abstract_state(system, 'static')
    step_lib.make_step(system, 'static', 0)
  assert seen == 2 * [{'encoders'}] + 2 * [{'encoders_0', 'encoders_1'}]
