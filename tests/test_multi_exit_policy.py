"""A backbone with exits, whose layers a policy drops: stages and cascade."""

import functools

from adavit_jax import cost
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import cascade as cascade_lib
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages as stages_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cascade import _same
from test_cascade import _thresholds
from test_multi_exit import _by_hand
from test_multi_exit import _close
from test_multi_exit import _ravit
from test_multi_exit import _ravit_by_hand
from test_multi_exit import BRANCHES
from test_multi_exit import images  # a fixture
from test_multi_exit import N
from test_multi_exit import STEERED
import tiny

# Of the encoders behind M = 1, those in each stage.
SPANS = (0, 0), (0, 2), (2, 2), (2, 3)


@pytest.fixture(scope='module')
def steered():
  return tiny.model(exits=STEERED)


def _scores(model, params, images):
  """What a policy decides by, [N, 2L]; of each action half are positive."""
  z1 = jax.jit(functools.partial(modes.before_policy, model))(params, images)
  project = np.random.default_rng(1).normal(
      size=(model.width, sum(plan.num_layers(model)))).astype(np.float32)
  found = np.asarray(z1).mean(1) @ project
  offset = np.median(found, 0)
  assert np.abs(found - offset).min() > 1e-3, 'no rounding decides'
  return found - offset, dict(project=project, offset=offset)


@pytest.fixture(scope='module')
def scores(steered, images):
  return _scores(steered, tiny.params(steered), images)


def _decide(params, z1, images):
  del images
  p = params['policy']
  keep = jnp.float32(z1.mean(1) @ p['project'] > p['offset'])
  num = keep.shape[-1] // 2
  return Actions.from_keep(jnp.maximum(keep, p['floor']), (num, num))


@pytest.fixture(scope='module')
def keep(scores):
  """What the policy decides, [N, 2L]."""
  found = np.float32(scores[0] > 0)
  assert len(np.unique(found, axis=0)) > 8
  return found


@pytest.fixture(scope='module')
def by_hand(steered):
  """Jitted: params, images, keep to logits [E, B, K]."""
  return jax.jit(lambda *args: _by_hand(steered, *args)[1])


@pytest.fixture(scope='module')
def weights(steered, scores, images, keep, by_hand):
  """Parameters of the model and of a policy; `floor` 1 keeps every layer."""
  params = tiny.params(steered)
  # Without constant parts every exit knows every class.
  means = np.asarray(by_hand(params, images, keep)).mean(1)
  layers = [params['heads'][f'exit_{i}']['head'] for i in range(3)]
  for layer, mean in zip(
      [*layers, params['backbone']['head']], means, strict=True):
    layer['bias'] -= mean
  return {**params, 'policy': dict(scores[1], floor=np.float32(0))}


@pytest.fixture(scope='module')
def logits(weights, images, keep, by_hand):
  """At every exit under the policy, [E, N, K]."""
  return np.asarray(by_hand(weights, images, keep))


def _runner(model, mode=None):
  """Jitted: params, images to (logits [E, B, K], keep [B, 2L], tokens).

  The last is the number of tokens in the carry at the end.
  """
  @jax.jit
  def run(params, images):
    carry, found = None, []
    for stage in stages_lib.stages(model, decide=_decide, mode=mode):
      carry, y = stage(params, images, carry)
      found.append(y)
    return jnp.stack(found), Actions(*carry[1]).keep, carry[0].shape[1]
  return run


@pytest.mark.nightly
def test_modes_agree_under_a_policy(
    steered, weights, images, keep, logits, by_hand):
  masked, chosen = _runner(steered, 'masked'), _runner(steered)
  for run in (masked, chosen):  # the second is 'compact'
    got, decided, tokens = run(weights, images)
    np.testing.assert_array_equal(decided, keep)
    _close(got, logits)
    # Of the last stage the class token alone is read.
    assert (tokens == 1) == (run is not masked)
  for i in range(6):  # 'cond'
    got, decided, tokens = chosen(weights, images[i:i + 1])
    np.testing.assert_array_equal(decided[0], keep[i])
    _close(got[:, 0], logits[:, i])
    assert tokens == 1

  # All actions 1: the plain model.
  everything = {
      **weights, 'policy': {**weights['policy'], 'floor': np.float32(1)}}
  want = by_hand(weights, images, np.ones_like(keep))
  assert np.abs(want - logits).max() > 0.1
  _close(masked(everything, images)[0], want)
  _close(chosen(everything, images)[0], want)
  _close(chosen(everything, images[:1])[0], want[:, :1])


def _drops(keep, index):
  """Branches that a stage drops, ([n] MSA, [n] MLP), by a loop."""
  start, stop = SPANS[index]
  msa, mlp = keep[:, :3], keep[:, 3:]
  count = lambda rows: np.array(
      [sum(row[i] == 0 for i in range(start, stop)) for row in rows])
  return count(msa), count(mlp)


def test_dropped_branches_are_counted(steered, keep):
  spend = cost.of(steered)
  actions = Actions.from_keep(keep, (3, 3))
  for k in range(4):
    msa, mlp = _drops(keep, k)
    got = spend.stage(k, actions)
    np.testing.assert_array_equal(
        got, spend.stages[k] - msa * spend.msa[0] - mlp * spend.mlp[0])
    start, stop = plan.spans(steered)[k]
    here = plan.cut(steered, actions, max(start, 1), max(stop, 1))
    for a, dropped in zip(here, (msa, mlp)):
      np.testing.assert_array_equal((a == 0).sum(1), dropped)
  # Among the fixed encoders there is nothing to drop.
  early = tiny.model(depth=5, num_fixed=3, exits=((1, 'mlp'), (4, 'mlp')))
  assert cost.of(early).layer_stages == Actions((1, 2), (1, 2))


def test_an_unknown_mode(steered):
  for mode in ('masks', 'static'):
    with pytest.raises(ValueError, match=f"mode '{mode}'.*'compact'"):
      stages_lib.stages(steered, decide=_decide, mode=mode)


# (mode, batch size); a batch of one image runs in 'cond'.
RUNS = [(None, N), pytest.param('masked', N, marks=pytest.mark.nightly),
        pytest.param(None, 1, marks=pytest.mark.nightly)]


# The stage in which it decides is the second, between two exits, or the last.
@pytest.mark.parametrize('mode, size', RUNS)
@pytest.mark.parametrize('num_fixed, asked', [
    (2, 1), pytest.param(3, 3, marks=pytest.mark.nightly)])
def test_exits_may_lie_before_the_policy(images, num_fixed, asked, mode, size):
  model = tiny.model(exits=STEERED, num_fixed=num_fixed)
  params = tiny.params(model)
  found, policy = _scores(model, params, images)
  keep = np.float32(found > 0)
  params['policy'] = dict(policy, floor=np.float32(0))
  by_hand = jax.jit(lambda *args: _by_hand(model, *args)[1])
  want = by_hand(params, images, keep)
  dense = by_hand(params, images, np.ones_like(keep))
  changed = np.abs(want - dense).max((1, 2)) > 0.1
  # The one encoder behind place 3 is that of the last exit.
  np.testing.assert_array_equal(changed, np.arange(4) >= asked)
  run = _runner(model, mode)
  for i in range(min(2, N // size)):
    rows = slice(i * size, (i + 1) * size)
    got, decided, _ = run(params, images[rows])
    np.testing.assert_array_equal(decided, keep[rows])
    _close(got, want[:, rows])

  # Before the policy has decided the carry is the tokens alone.
  carry = None
  for k, stage in enumerate(stages_lib.stages(model, decide=_decide)):
    carry, _ = jax.eval_shape(stage, params, images, carry)
    tokens = carry if k < asked else carry[0]
    assert tokens.shape == (N, 5 if k < 3 else 1, 16)
    if k >= asked:
      assert [a.shape for a in carry[1]] == [(N, 4 - num_fixed)] * 2


@pytest.mark.parametrize('mode, size', RUNS)
@pytest.mark.nightly
def test_a_ravit_under_a_policy(mode, size):
  """Which decides between the branches."""
  model = _ravit(exits=BRANCHES, num_fixed=2)
  images = np.random.default_rng(2).normal(
      size=(12, 16, 16, 1)).astype(np.float32)
  params = tiny.params(model)
  found, policy = _scores(model, params, images)
  params['policy'] = dict(policy, floor=np.float32(0))
  keep = np.ones((2, 12, 4), np.float32)
  keep[..., 2:] = np.stack(np.split(found > 0, 2, axis=1))
  by_hand = jax.jit(functools.partial(_ravit_by_hand, model))
  want = by_hand(params, images, keep)
  assert np.abs(want - by_hand(params, images))[-1].max() > 0.1
  got, decided, _ = _runner(model, mode)(params, images[:size])
  np.testing.assert_array_equal(decided, found[:size] > 0)
  _close(got, want[:, :size])


def test_a_policy_at_an_own_exit_sees_all_tokens():
  """The exit there, and the bridge behind it, read the CLS token alone."""
  model, seen = _ravit(exits=(), num_fixed=2), []
  assert 2 in [e.place for e in plan.exits(model)]
  def decide(params, z1, images):
    seen.append(z1.shape[1])
    return Actions(*(jnp.ones((len(z1), num))
                     for num in plan.num_layers(model)))
  params = jax.eval_shape(lambda: tiny.params(model))
  images, carry = jax.ShapeDtypeStruct((3, 16, 16, 1), jnp.float32), None
  for stage in stages_lib.stages(model, decide=decide):
    carry, _ = jax.eval_shape(stage, params, images, carry)
  assert seen == [plan.tokens_at(model, 2).num]


def _cascade(model, weights, rule, sizes=(1, 8)):
  spend = cost.of(model)

  def spent(index, carry):
    x, actions = carry if isinstance(carry, tuple) else (carry, None)
    macs = spend.stage(index, None if actions is None else Actions(*actions))
    return jnp.broadcast_to(macs, len(x))

  return cascade_lib.Cascade(
      stages_lib.stages(model, decide=_decide), weights, rule, 0.,
      spend.stages, image_macs=spent, sizes=sizes)


def _expected(model, logits, keep, rule, thresholds, rows):
  """Running all stages and choosing afterwards."""
  spend = cost.of(model)
  macs = np.array([
      total - msa * spend.msa[0] - mlp * spend.mlp[0]
      for total, (msa, mlp) in zip(spend.stages,
                                   (_drops(keep, k) for k in range(4)))])
  confidence = np.asarray(confidence_lib.confidences(rule, logits))
  chosen = confidence_lib.choose(confidence[:, rows], thresholds)
  y = logits[chosen, rows]
  return cascade_lib.CascadePrediction(
      y, y.argmax(-1), chosen, np.cumsum(macs, 0)[chosen, rows])


def _streamed(cascade, images, **kwargs):
  found = cascade.stream(iter(images), **kwargs)
  return cascade_lib.CascadePrediction(*map(np.stack, zip(*found)))


def test_cascade_under_a_policy(steered, weights, images, keep, logits):
  rule = confidence_lib.RULES['entropy']
  cascade = _cascade(steered, weights, rule)
  confidence = np.asarray(confidence_lib.confidences(rule, logits))
  rng = np.random.default_rng(2)
  trials = [np.median(confidence[:-1], 1) + 1e-5,
            *(_thresholds(confidence, rng) for _ in range(8))]
  for thresholds, n in zip(trials, [N, N, 1, 2, 7, 8, 9, 16, 17]):
    cascade.thresholds = thresholds
    rows = rng.choice(N, n, replace=False)
    want = _expected(steered, logits, keep, rule, thresholds, rows)
    _same(cascade(images[rows]), want)
    _same(_streamed(cascade, images[rows], window=8), want)
    _same(cascade(images[rows[:1]]),
          cascade_lib.CascadePrediction(*(x[:1] for x in want)))
    if n == N and thresholds is trials[0]:
      assert set(want.exit) == {0, 1, 2, 3}
      assert len(set(want.macs)) > 8


@pytest.mark.nightly
def test_patience_under_a_policy(steered, weights, images, keep, logits):
  rule = confidence_lib.RULES['patience']
  cascade = _cascade(steered, weights, rule)
  top = np.sort(logits, -1)
  assert (top[..., -1] - top[..., -2]).min() > 1e-4, 'no rounding decides'
  cascade.thresholds = 1.5
  want = _expected(steered, logits, keep, rule, 1.5, np.arange(N))
  assert set(want.exit) == {1, 2, 3}  # never at once
  _same(cascade(images), want)
  _same(_streamed(cascade, images), want)
