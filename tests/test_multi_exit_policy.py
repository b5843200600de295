"""A ViT with exits, whose layers a policy drops: its stages, its cascade."""

import functools

from adavit_jax import cost
from adavit_jax import exit_cost
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import cascade as cascade_lib
from adavit_jax.runtime import exit_stages
from adavit_jax.runtime import modes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cascade import _same
from test_cascade import _thresholds
from test_multi_exit import _by_hand
from test_multi_exit import _close
from test_multi_exit import images  # a fixture
from test_multi_exit import N
from test_multi_exit import STEERED
import tiny

# Of the adaptive encoders behind M = 1, those in each stage.
SPANS = (0, 0), (0, 2), (2, 2), (2, 3)


@pytest.fixture(scope='module')
def steered():
  return tiny.model(exits=STEERED)


@pytest.fixture(scope='module')
def scores(steered, images):
  """What the policy decides by, [N, 2L]; of each action half are positive."""
  vit, params = steered.vit, tiny.params(steered)
  z1 = jax.jit(functools.partial(modes.fixed, vit))(params['vit'], images)
  project = np.random.default_rng(1).normal(
      size=(vit.width, 2 * vit.num_adaptive)).astype(np.float32)
  found = np.asarray(z1).mean(1) @ project
  offset = np.median(found, 0)
  assert np.abs(found - offset).min() > 1e-3, 'no rounding decides'
  return found - offset, dict(project=project, offset=offset)


def _decide(params, z1):
  p = params['policy']
  keep = jnp.float32(z1.mean(1) @ p['project'] > p['offset'])
  return Actions.from_keep(jnp.maximum(keep, p['floor']))


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
  for layer, mean in zip([*layers, params['vit']['head']], means, strict=True):
    layer['bias'] -= mean
  return {**params, 'policy': dict(scores[1], floor=np.float32(0))}


@pytest.fixture(scope='module')
def logits(weights, images, keep, by_hand):
  """At every exit under the policy, [E, N, K]."""
  return np.asarray(by_hand(weights, images, keep))


def _runner(model, mode=None):
  """Jitted: params, images to (logits [E, B, K], keep [B, 2L], moved [N]).

  `moved`: by how much the last stage changes each token.
  """
  @jax.jit
  def run(params, images):
    carry, found = None, []
    for stage in exit_stages.stages(model, _decide, mode):
      before, (carry, y) = carry, stage(params, images, carry)
      found.append(y)
    moved = jnp.abs(carry[0] - before[0]).max((0, 2))
    return jnp.stack(found), carry[1], moved
  return run


def test_modes_agree_under_a_policy(
    steered, weights, images, keep, logits, by_hand):
  masked, chosen = _runner(steered, 'masked'), _runner(steered)
  for run in (masked, chosen):  # the second is 'compact'
    got, decided, moved = run(weights, images)
    np.testing.assert_array_equal(decided, keep)
    _close(got, logits)
    # Of the one encoder in the last stage the class token alone is read.
    assert (moved[1:] > 0.1).all() == (run is masked)
    assert moved[1:].any() == (run is masked)
  for i in range(6):  # 'cond'
    got, decided, moved = chosen(weights, images[i:i + 1])
    np.testing.assert_array_equal(decided[0], keep[i])
    _close(got[:, 0], logits[:, i])
    assert not moved[1:].any()

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
  for k in range(4):
    assert exit_stages.adaptive_span(steered, k) == SPANS[k]
    got = exit_stages.dropped(steered, k, keep)
    for a, b in zip(got, _drops(keep, k), strict=True):
      np.testing.assert_array_equal(a, b)
  # Among the fixed encoders there is nothing to drop.
  early = tiny.model(depth=5, num_fixed=3, exits=((1, 'mlp'), (4, 'mlp')))
  assert [exit_stages.adaptive_span(early, k) for k in range(3)] == [
      (0, 0), (0, 1), (1, 2)]


@pytest.mark.parametrize('num_fixed, mode, message', [
    (2, None, r"exits=\(\(1, 'mlp'\).* num_fixed=2 encoders, no exit"),
    (1, 'masks', "unknown mode 'masks'; known: .*'compact'")])
def test_stages_that_cannot_be_steered(num_fixed, mode, message):
  model = tiny.model(exits=STEERED, num_fixed=num_fixed)
  with pytest.raises(ValueError, match=message):
    exit_stages.stages(model, _decide, mode)


def _cascade(model, weights, rule, sizes=(1, 8)):
  macs = exit_cost.multi_exit(model).stages
  vit = cost.vit(model.vit)

  def spent(index, carry):
    msa, mlp = exit_stages.dropped(model, index, carry[1])
    return macs[index] - msa * float(vit.msa) - mlp * float(vit.mlp)

  return cascade_lib.Cascade(
      exit_stages.stages(model, _decide), weights, rule, 0., macs, spent=spent,
      sizes=sizes)


def _expected(model, logits, keep, rule, thresholds, rows):
  """Running all stages and choosing afterwards."""
  vit = cost.vit(model.vit)
  macs = np.array([
      total - msa * vit.msa - mlp * vit.mlp
      for total, (msa, mlp) in zip(exit_cost.multi_exit(model).stages,
                                   (_drops(keep, k) for k in range(4)))])
  confidence = np.asarray(confidence_lib.confidences(rule, logits))
  chosen = confidence_lib.choose(confidence[:, rows], thresholds)
  y = logits[chosen, rows]
  return cascade_lib.Prediction(
      y, y.argmax(-1), chosen, np.cumsum(macs, 0)[chosen, rows])


def _streamed(cascade, images, **kwargs):
  found = cascade.stream(iter(images), **kwargs)
  return cascade_lib.Prediction(*map(np.stack, zip(*found)))


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
          cascade_lib.Prediction(*(x[:1] for x in want)))
    if n == N and thresholds is trials[0]:
      assert set(want.exit) == {0, 1, 2, 3}
      assert len(set(want.macs)) > 8


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
