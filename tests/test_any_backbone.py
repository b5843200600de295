"""Every mechanism of the library on an odd backbone, branch after branch."""

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Context
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages as stages_lib
import jax
import jax.numpy as jnp
import numpy as np
import odd
import products
import pytest
import tiny

CLOSE = dict(rtol=2e-5, atol=2e-5)
EXITS = ((1, 'mlp'), (3, 'resmlp'), (3, 'vit'), (4, 'mlp_mixer'))


def _random(model, size, seed=0):
  rng = np.random.default_rng(seed)
  return Actions(*(rng.integers(0, 2, (size, num)).astype(np.float32)
                   for num in plan.num_layers(model)))


def _ones(model, size):
  return Actions(*(np.ones((size, num), np.float32)
                   for num in plan.num_layers(model)))


def _images(size=5):
  rng = np.random.default_rng(1)
  return rng.normal(size=(size, 4, 4, 1)).astype(np.float32)


# Inside a stack, between two that share a group, and behind the bridge.
NUM_LAYERS = {0: (2, 8), 1: (2, 6), 2: (2, 4), 3: (2, 2), 4: (1, 1)}


@pytest.mark.parametrize('num_fixed, dictionary', [
    pytest.param(0, False, marks=pytest.mark.nightly), (1, True),
    pytest.param(2, False, marks=pytest.mark.nightly),
    pytest.param(3, False, marks=pytest.mark.nightly),
    pytest.param(3, True, marks=pytest.mark.nightly),
    pytest.param(4, True, marks=pytest.mark.nightly)])
def test_modes_agree_on_any_plan(num_fixed, dictionary):
  model = odd.model(num_fixed=num_fixed, dictionary=dictionary)
  assert plan.num_layers(model) == NUM_LAYERS[num_fixed]
  params, images = tiny.params(model), _images()
  actions = _random(model, 5)
  by_hand = jax.jit(lambda *args: odd.by_hand(model, *args)[0][-1])
  want = by_hand(params, images, actions)
  dense = by_hand(params, images, _ones(model, 5))
  assert np.abs(want - dense).max() > 0.05

  run = jax.jit(lambda p, x, actions, mode: modes.forward(
      model, p, x, actions, mode=mode).total, static_argnames='mode')
  for mode in ('masked', 'compact'):
    np.testing.assert_allclose(
        run(params, images, actions, mode), want, **CLOSE)
  for i in range(2):
    row = Actions(*(a[i:i + 1] for a in actions))
    got = run(params, images[i:i + 1], row, 'cond')
    np.testing.assert_allclose(got[0], want[i], **CLOSE)
  shared = Actions(*(a[0] for a in actions))
  static = jax.jit(lambda p, x: modes.forward(
      model, p, x, shared, mode='static').total)
  np.testing.assert_allclose(static(params, images)[0], want[0], **CLOSE)
  np.testing.assert_allclose(
      run(params, images, None, 'masked'), dense, **CLOSE)


def _decide(params, z1, images):
  """A policy that looks at the images alone: 12 pixels tell everything."""
  del z1
  num = params['policy']
  keep = jnp.float32(images.reshape(len(images), -1)[:, :sum(num)] > 0)
  return Actions.from_keep(keep, num)


@pytest.mark.nightly  # test_stranger has the stages of another plan
@pytest.mark.parametrize('dictionary, mode', [
    (False, 'masked'), (False, None), (True, 'masked'), (True, None)])
def test_stages_of_any_plan(dictionary, mode):
  """With exits, and a policy between the first two of them."""
  model = odd.model(num_fixed=2, dictionary=dictionary, exits=EXITS)
  num = plan.num_layers(model)
  params, images = tiny.params(model), _images()
  keep = np.float32(images.reshape(5, -1)[:, :sum(num)] > 0)

  def run(images, decide):
    carry, found = None, []
    for stage in stages_lib.stages(
        model, decide=decide, mode=mode if decide else None):
      carry, y = stage({**params, 'policy': num}, images, carry)
      found.append(y)
    return jnp.stack(found)

  dense, want, got, one, plain = jax.jit(lambda images: (
      odd.by_hand(model, params, images, _ones(model, 5))[0],
      odd.by_hand(model, params, images, Actions.from_keep(keep, num))[0],
      run(images, _decide), run(images[:1], _decide), run(images, None)))(
          images)
  np.testing.assert_allclose(got, want, **CLOSE)
  np.testing.assert_allclose(one, want[:, :1], **CLOSE)
  np.testing.assert_allclose(plain, dense, **CLOSE)
  # The first exit lies before the policy.
  changed = np.abs(want - dense).max((1, 2)) > 0.02
  np.testing.assert_array_equal(changed, [False, True, True, True, True])


def test_cost_of_any_plan():
  model = odd.model(num_fixed=2, exits=EXITS)
  params = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
  images = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
  spend = cost.of(model)
  each = odd.D ** 2
  assert spend.msa == (4 * each,) * 2
  assert spend.mlp == (8 * each,) * 2 + (4 * each,) * 2
  # The stages behind the first: to place 3, to place 4, to the end.
  assert spend.layer_stages == Actions((3, 4), (1, 1, 3, 4))
  assert plan.owners(model) == dict(
      a=[0, 1, 1], join=3, b=[3, 4], head=4)

  count = lambda run: products.macs(jax.make_jaxpr(run)(params, images).jaxpr)
  for seed in range(6):
    actions = Actions(*(a[0] for a in _random(model, 1, seed)))
    got = count(lambda p, x: modes.forward(
        model, p, x, actions, mode='static').total)
    assert got == spend.adaptive(actions) - cost.left_out(model, actions)
  every = fixed.all_layers(plan.num_layers(model))
  assert cost.left_out(model, every) == 2 * 3 * each
  assert count(lambda p, x: modes.forward(model, p, x).total) == (
      spend.dense - 2 * 3 * each)


@pytest.mark.parametrize('tokens, dictionary', [
    pytest.param('all', False, marks=pytest.mark.nightly),
    pytest.param('all', True, marks=pytest.mark.nightly),
    pytest.param('pooled', False, marks=pytest.mark.nightly),
    ('pooled', True)])
def test_policy_networks_of_any_plan(tokens, dictionary):
  """Of the tokens; without a class token, pooled ones are their mean."""
  model = odd.model(num_fixed=3, dictionary=dictionary)
  nets = learned.PolicyNets(
      plan.num_layers(model), odd.K, tokens=tokens, head=True, hidden=5)
  at = plan.tokens_at(model, 3)
  assert nets.num_features(at) == (
      (8 if tokens == 'all' else 1 if dictionary else 2) * odd.D)

  def run(params, images):
    params = {**params, **learned.init_params(nets, model, jax.random.key(0))}
    z1 = modes.before_policy(model, params, images)
    features = learned.observe(nets, model, params, z1)
    return learned.greedy(nets, params['policy'], features)

  args = tiny.params(model), _images()
  actions = jax.jit(run)(*args)
  assert [a.shape for a in actions] == [(5, 2), (5, 2)]

  def decide(params, z1):
    features = learned.observe(nets, model, params, z1)
    return learned.greedy(nets, params['policy'], features)

  params = {**args[0], **jax.eval_shape(
      lambda: learned.init_params(nets, model, jax.random.key(0)))}
  z1 = jax.eval_shape(
      lambda p, x: modes.before_policy(model, p, x), args[0], args[1][:1])
  program = jax.make_jaxpr(decide)(params, z1)
  assert products.macs(program.jaxpr) == cost.of(model, nets).policy


def _training(**overrides):
  model = odd.model(norm=True, **overrides)
  params = tiny.params(model)
  assert set(params) == {'backbone', 'batch_stats', 'heads'}
  return model, params, params['batch_stats']


def test_batch_statistics_are_folded_for_inference():
  model, params, stats = _training(exits=EXITS, num_fixed=2)
  images = _images()

  @jax.jit
  def run(params, stats):
    want, _ = odd.by_hand(model, params, images, _ones(model, 5),
                          Context(stats=stats))
    logits, same = stages_lib.training(
        model, params, images, Context(stats=stats))
    return (want, jnp.stack(logits), same,
            stages_lib.exit_logits(model, params, images),
            modes.forward(model, params, images).total)

  want, training, same, inference, last = run(params, stats)
  np.testing.assert_allclose(training, want, **CLOSE)
  np.testing.assert_allclose(inference, want, **CLOSE)
  np.testing.assert_allclose(last, want[-1], **CLOSE)
  jax.tree.map(np.testing.assert_array_equal, same, stats)
  folded = jax.jit(lambda p: models.fold(model, p))(params)
  assert folded['batch_stats'] is None
  assert models.fold(model, folded) is folded
  np.testing.assert_array_equal(
      folded['backbone']['a']['mean'], stats['a']['mean'])
  # Without them every answer is another.
  zeros = {**params, 'batch_stats': jax.tree.map(np.zeros_like, stats)}
  other = run(zeros, zeros['batch_stats'])[-1]
  assert np.abs(other - last).max() > 0.05

  actions = _random(model, 5)
  want, *found = jax.jit(lambda folded, p, a: [
      odd.by_hand(model, folded, images, a)[0][-1],
      *(modes.forward(model, p, images, a, mode=mode).total
        for mode in ('masked', 'compact'))])(folded, params, actions)
  for got in found:
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize('dictionary', [
    pytest.param(False, marks=pytest.mark.nightly), True])
def test_training_updates_the_statistics_of_every_encoder(dictionary):
  model, params, stats = _training(
      exits=EXITS, num_fixed=2, dictionary=dictionary)
  images, actions = _images(), _random(odd.model(num_fixed=2), 5)
  ctx = Context(train=True, stats=stats)

  @jax.jit
  def run(params, actions):
    result = modes.embed(model, params, images, ctx)
    for start, stop, gates in ((0, 2, None), (2, 5, actions)):
      result = masked.run(
          model, params, result.x, images, gates, start=start, stop=stop,
          ctx=ctx._replace(stats=result.stats))
    return (result.stats, odd.by_hand(model, params, images, actions, ctx)[1],
            stages_lib.training(model, params, images, ctx),
            odd.by_hand(model, params, images, _ones(model, 5), ctx),
            stages_lib.training(model, params, images, ctx, num=1)[1])

  close = lambda got, want: np.testing.assert_allclose(got, want, **CLOSE)
  got, want, (logits, dense), (want_logits, want_dense), first = run(
      params, actions)
  for name in ('stem', 'a', 'join', 'b'):  # the head has not been asked
    close(got[name]['mean'], want[name]['mean'])
  np.testing.assert_array_equal(got['head']['mean'], stats['head']['mean'])
  close(jnp.stack(logits), want_logits)
  jax.tree.map(close, dense, want_dense)
  moved = lambda new: {name: np.abs(new[name]['mean'] - stats[name]['mean'])
                       for name in stats}
  assert all(x.min() > 0 for x in moved(dense).values())
  # The first stage is one encoder.
  for name, x in moved(first).items():
    np.testing.assert_array_equal(
        x > 0, np.full(x.shape, name == 'stem') if name != 'a' else
        np.tile([[True], [False], [False]], x.shape[1]))
