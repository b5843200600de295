"""DVT as a backbone: modes, stages, the cascade, gradients."""

import re

from adavit_jax import cost
from adavit_jax import models
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.runtime import cascade as cascade_lib
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages as stages_lib
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dvt
import pytest
from test_dvt_reuse import images
from test_dvt_reuse import model
import tiny

CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.fixture(scope='module')
def params():
  return tiny.params(model())


@pytest.fixture(scope='module')
def plain(params):
  """Logits [E, B, K] of the plain forward pass."""
  return jax.jit(lambda p, x: model().apply({'params': p}, x))(
      params['backbone'], images())


def test_stages_and_training_are_the_model(params, plain):
  m = model()
  @jax.jit
  def run(params, x):
    logits, stats = stages_lib.training(m, params, x, EVAL, remat=True)
    assert stats is None
    return (stages_lib.exit_logits(m, params, x), jnp.stack(logits),
            modes.forward(m, params, x).total)
  inference, training, last = run(params, images())
  np.testing.assert_allclose(inference, plain, **CLOSE)
  np.testing.assert_allclose(training, plain, **CLOSE)
  np.testing.assert_allclose(last, plain[-1], **CLOSE)


def test_without_reuse_it_is_independent_vits():
  """Exactly, for grids that do and do not divide the image."""
  m = model(grids=(2, 5, 6), reuse_features=False, reuse_relations=False)
  params, x = tiny.params(m), images()
  got = jax.jit(lambda p, x: m.apply({'params': p}, x))(params['backbone'], x)
  for k, n in enumerate(m.grids):
    vit = models.create(
        'vit_digits_patch2_8', image_size=12 + 3 * (k == 1), patch_size=3,
        width=8, depth=2, num_heads=2, mlp_ratio=2., num_classes=3)
    vit = vit.clone(patch_size=vit.image_size // n)
    own = {name.removesuffix(f'_{k}'): leaf
           for name, leaf in params['backbone'].items()
           if name.endswith(f'_{k}')}
    # 15 pixels with the border of zeros, which 5 patches of 3 fill.
    edge = [(0, 0), (2, 1), (2, 1), (0, 0)] if k == 1 else [(0, 0)] * 4
    want = jax.jit(lambda p, x, vit=vit: vit.apply({'params': p}, x).total)(
        own, np.pad(x, edge))
    np.testing.assert_array_equal(got[k], want)


def test_one_transformer_skips_tokens_that_nobody_reads():
  """Also without a bias of queries, keys and values."""
  m = model(grids=(2,), image_size=24, stem='t2t', windows=((3, 3, 0),))
  params, x = tiny.params(m), images(size=24)
  got, want = jax.jit(lambda p, x: (
      modes.forward(m, p, x).total,
      m.apply({'params': p['backbone']}, x)[0]))(params, x)
  np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize('grids, num_fixed', [
    ((2, 3), 1), pytest.param((2, 3, 4), 4, marks=pytest.mark.nightly)])
def test_modes_agree(grids, num_fixed):
  """The logits of dropped layers are zero, as in the NumPy reference."""
  m, x = model(grids=grids, num_fixed=num_fixed), images()
  params, num = tiny.params(m), 2 * len(grids)
  keep = np.ones((2, 3, num), np.float32)
  keep[:, :, num_fixed:] = np.random.default_rng(num_fixed).integers(
      0, 2, (2, 3, num - num_fixed))
  actions = Actions(*keep[:, :, num_fixed:])
  want = numpy_dvt.logits(m, params, np.float64(x), keep)[-1]
  shared = Actions(*(a[0] for a in actions))
  @jax.jit
  def run(params, actions, shared):
    forward = lambda actions, mode: modes.forward(
        m, params, x, actions, mode=mode).total
    return (forward(actions, 'masked'), forward(actions, 'compact'),
            forward(shared, 'cond'))
  every, compact, cond = run(params, actions, shared)
  static = jax.jit(lambda p: modes.forward(
      m, p, x, shared, mode='static').total)(params)
  np.testing.assert_allclose(every, want, **CLOSE)
  np.testing.assert_allclose(compact, want, **CLOSE)
  np.testing.assert_allclose(cond[0], want[0], **CLOSE)
  np.testing.assert_allclose(static[0], want[0], **CLOSE)


@pytest.mark.nightly
def test_added_exits_split_a_transformer(params, plain):
  """The logits of its first encoders are carried, and joined by the others."""
  m = model(exits=((1, 'mlp'), (3, 'mlp')))
  groups = {**tiny.params(m), 'backbone': params['backbone']}
  logits = jax.jit(lambda p, x: stages_lib.exit_logits(m, p, x))(
      groups, images())
  np.testing.assert_allclose(logits[jnp.array([1, 3, 4])], plain, **CLOSE)


def test_an_added_exit_behind_a_transformer_has_its_tokens():
  """The own exit of the same place still reads what no transformer reuses."""
  m = model(grids=(2, 3), depth=1, reuse_features=False, exits=((1, 'mlp'),))
  params = tiny.params(m)
  logits, want = jax.jit(lambda p, x: (
      stages_lib.exit_logits(m, p, x), m.apply({'params': p['backbone']}, x)))(
          params, images())
  np.testing.assert_allclose(logits[1:], want, **CLOSE)


@pytest.mark.parametrize('num_fixed, overrides', [
    (2, dict(reuse_features=False)),  # decides where a transformer ends
    pytest.param(3, dict(exits=((1, 'mlp'), (3, 'mlp'))),
                 marks=pytest.mark.nightly)])
def test_stages_with_a_policy(num_fixed, overrides):
  """It reads all tokens; layers of one later transformer are dropped."""
  m = model(grids=(2, 3), num_fixed=num_fixed, **overrides)
  params, x = tiny.params(m), images()
  keep = np.ones((2, 3, 4))
  keep[:, :, num_fixed:] = np.random.default_rng(1).integers(
      0, 2, (2, 3, 4 - num_fixed))
  def decide(params, z1, images):
    del params, images
    at = plan.tokens_at(m, num_fixed)
    assert m.tokens(z1, at).shape == (3, at.num, at.width)
    return Actions(*jnp.float32(keep[:, :, num_fixed:]))
  @jax.jit
  def run(params):
    carry, exits = None, []
    for e, stage in zip(plan.exits(m), stages_lib.stages(m, decide=decide)):
      carry, y = stage(params, x, carry)
      exits += [] if e.head else [y]
    return jnp.stack(exits)
  np.testing.assert_allclose(
      run(params), numpy_dvt.logits(m, params, np.float64(x), keep), **CLOSE)


@pytest.mark.nightly
def test_gradients_flow_through_both_kinds_of_reuse():
  """From the last exit into every parameter but those of the earlier one."""
  x, both = images(), model(grids=(2, 3), depth=1)
  relations = both.clone(reuse_features=False)
  def loss(m, p):
    return (m.apply({'params': p}, x)[-1] ** 2).sum()
  @jax.jit
  def run(p, q):
    return (jax.grad(lambda p: loss(both, p))(p),
            jax.grad(lambda p: loss(relations, p))(q))
  found, through = run(*(tiny.params(m)['backbone'] for m in (both, relations)))
  for name, leaves in found.items():
    largest = max(np.abs(a).max() for a in jax.tree.leaves(leaves))
    assert (largest > 0) == (name not in ('norm_0', 'head_0')), name
  # Through the relations alone, queries and keys of the last encoder learn,
  # and its values, which reach no logits, do not.
  kernel = through['encoders_0']['qkv']['kernel'][-1]  # [D, q k v]
  assert np.abs(kernel[:, :8]).max() > 0 and np.abs(kernel[:, 8:16]).max() > 0
  assert not np.any(kernel[:, 16:])


def test_gates_up_to_1_scale_logits_too(params):
  m, x = model(num_fixed=0), images()
  def logits(gate):
    gates = Actions(*(jnp.full(num, gate) for num in plan.num_layers(m, 0, 2)))
    start = modes.embed(m, params, x).x
    return masked.run(m, params, start, x, gates, stop=2).x['logits']
  whole, half, none, more = jax.jit(
      lambda: tuple(map(logits, (1., .5, 0., 1.5))))()
  assert whole.shape == (3, 2, 2, 5, 5)
  np.testing.assert_allclose(half[:, 0], whole[:, 0] / 2, rtol=1e-6)
  np.testing.assert_allclose(more[:, 0], whole[:, 0], rtol=1e-6)
  assert np.abs(more[:, 1] - whole[:, 1]).max() > 1e-3  # of scaled activations
  assert not np.any(none)


@pytest.mark.parametrize('overrides', [
    dict(grids=(2, 3), depth=1), pytest.param({}, marks=pytest.mark.nightly)])
def test_the_cascade_is_the_choice_afterwards(overrides):
  """Batches, a stream and single images, without compilation."""
  m, many = model(**overrides), images(40)
  params, rule = tiny.params(m), confidence_lib.RULES['max_probability']
  logits, confidence = jax.device_get(jax.jit(lambda p, x: (
      y := stages_lib.exit_logits(m, p, x),
      confidence_lib.confidences(rule, y)))(params, many))
  runner = cascade_lib.Cascade(
      stages_lib.stages(m), params, rule, np.median(confidence[:-1], 1),
      cost.of(m).stages, sizes=(1, 8))
  runner.warm_up(many)
  runner(many[:1])
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, *args, **kwargs: compiled.append(event)
      if event == '/jax/core/compile/backend_compile_duration' else None)
  chosen = confidence_lib.choose(confidence, runner.thresholds)
  assert np.bincount(chosen, minlength=len(m.grids)).min() > 3
  batch, stream = runner(many), list(runner.stream(iter(many)))
  one = [runner(many[i:i + 1]) for i in range(10)]
  assert not compiled
  want = logits[chosen, np.arange(len(many))]
  np.testing.assert_array_equal(batch.exit, chosen)
  np.testing.assert_allclose(batch.logits, want, **CLOSE)
  np.testing.assert_array_equal(batch.macs, cost.of(m).exits[chosen])
  np.testing.assert_array_equal([p.exit for p in stream], chosen)
  np.testing.assert_allclose([p.logits for p in stream], want, **CLOSE)
  np.testing.assert_array_equal([p.exit[0] for p in one], chosen[:10])
  np.testing.assert_allclose(
      np.concatenate([p.logits for p in one]), want[:10], **CLOSE)


def test_bfloat16_is_close_and_its_softmax_is_in_float32():
  m, x = model(grids=(2, 3), depth=1), images()
  half, params = m.clone(dtype='bfloat16'), tiny.params(m)
  exits = lambda n: lambda p: stages_lib.exit_logits(n, p, x)
  want, got = jax.jit(lambda p: (exits(m)(p), exits(half)(p)))(params)
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, rtol=0, atol=0.02)
  program = str(jax.make_jaxpr(exits(half))(params))
  found = re.findall(r':(\w+)\[3,2,(\d+),\d+\] = exp ', program)
  assert found == [('f32', '5'), ('f32', '10')]
