"""A trained model as a function, in whatever mode saves time."""

import functools
import os

import adavit_jax
from adavit_jax.exits import confidence
from adavit_jax.inference import batch_sizes
from adavit_jax.inference import classifier
from adavit_jax.inference import settings
from adavit_jax.models import encoder
from adavit_jax.models import exit_heads
from adavit_jax.models import params as params_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.runtime import cascade
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny

CLOSE = dict(rtol=1e-4, atol=1e-4)
UP_TO = batch_sizes.up_to


def _make(**kwargs):
  system = system_lib.create(tiny.get_config(), tiny.dataset())
  state = state_lib.init_state(system, 0)
  rng = np.random.default_rng(1)
  # Large enough that images decide differently.
  policy = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32),
                        state.params['policy'])
  state = state.replace(params={
      **state.params, **tiny.params(system.model), 'policy': policy})
  return classifier.Classifier(system, state, **kwargs), state


@pytest.fixture(scope='module', autouse=True)
def few_sizes():
  """Programs for single images and for the most: fewer to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(batch_sizes, 'up_to', lambda largest: sorted({1, largest}))
    yield


def test_batch_sizes():
  assert UP_TO(8) == [1, 2, 3, 4, 6, 8]


@pytest.fixture(scope='module')
def made():
  return _make(max_batch_size=4)


@pytest.fixture(scope='module')
def clf(made):
  return made[0]


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (33, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope='module')
def oracle(made):
  """Masked, all images at once."""
  system, state = made[0].system, made[1]

  @jax.jit
  def run(images, threshold):
    params, images = state.params, system.normalize(images)
    z1 = modes.before_policy(system.model, params, images)
    features = learned.observe(system.nets, system.model, params, z1)
    actions = learned.greedy(
        system.nets, params['policy'], features, threshold=threshold)
    logits = modes.after_policy(
        system.model, params, z1, actions, 'masked').total
    return logits, actions

  # NumPy, so that slicing the result compiles nothing.
  return lambda *args: jax.tree.map(np.asarray, run(*args))


def _compilations(run):
  counts = []
  def listen(name, *_, **__):
    if name == '/jax/core/compile/backend_compile_duration':
      counts.append(name)
  jax.monitoring.register_event_duration_secs_listener(listen)
  run()
  num = len(counts)
  counts.clear()
  run()
  return num, len(counts)


def test_every_batch_size_gives_each_image_its_own_result(
    clf, images, oracle):
  """And compiles once per padded size, whatever the actions and thresholds."""
  want, actions = oracle(images, 0.5)
  assert len(np.unique(actions.keep, axis=0)) > 5
  macs = clf.system.cost.adaptive(actions)

  def every_size():
    for size in (1, 2, 3, 4, 5, 6, 7, 33):
      got = clf(images[:size])
      np.testing.assert_allclose(got.logits, want[:size], **CLOSE)
      np.testing.assert_array_equal(got.labels, want[:size].argmax(-1))
      np.testing.assert_array_equal(got.actions.keep, actions.keep[:size])
      np.testing.assert_allclose(got.macs, macs[:size])

  first, again = _compilations(every_size)
  assert (first, again) == (2, 0)


def test_images_of_a_batch_keep_their_order(clf, images, oracle):
  order = np.random.default_rng(3).permutation(16)
  want, _ = oracle(images, 0.5)
  np.testing.assert_allclose(clf(images[order]).logits, want[order], **CLOSE)


def test_the_threshold_is_a_knob_at_run_time(made, images, oracle):
  clf = made[0]
  assert clf.threshold == 0.5
  before = clf(images[:16])
  clf.threshold = 0.9
  try:
    after, again = clf(images[:16]), _compilations(lambda: clf(images[:16]))
  finally:
    clf.threshold = 0.5
  want, _ = oracle(images, 0.9)
  np.testing.assert_allclose(after.logits, want[:16], **CLOSE)
  assert after.macs.mean() < before.macs.mean()
  assert again == (0, 0)


def test_the_first_threshold_is_that_of_the_config():
  config = tiny.get_config()
  config.nets.threshold = 0.7
  system = system_lib.create(config, tiny.dataset())
  clf = classifier.Classifier(system, state_lib.init_state(system, 0))
  assert clf.threshold == 0.7


def test_a_fixed_policy_runs_its_mask(images):
  actions = Actions(np.float32([1, 0, 1]), np.float32([0, 0, 1]))
  clf, state = _make(actions=actions, max_batch_size=4)
  got = clf(images[:3])
  want = jax.jit(lambda p, x: modes.forward(
      clf.system.model, p, clf.system.normalize(x), actions,
      mode='static').total)(state.params, images[:3])
  np.testing.assert_allclose(got.logits, want, **CLOSE)
  np.testing.assert_array_equal(got.actions.msa, [[1, 0, 1]] * 3)
  np.testing.assert_array_equal(got.actions.mlp, [[0, 0, 1]] * 3)
  assert set(got.macs) == {clf.system.plain_cost.adaptive(actions)}


def test_later_changes_of_an_array_do_not_change_the_actions(images):
  msa, mlp = np.ones((2, 3), np.float32)
  clf = _make(actions=Actions(msa, mlp))[0]
  want = clf(images[:2]).logits.copy()
  msa[:] = 0
  np.testing.assert_allclose(clf(images[:5]).logits[:2], want, **CLOSE)
  assert clf.actions.num_kept == 6
  with pytest.raises(ValueError, match='read-only'):
    clf.actions.mlp[:] = 0


def test_logits_belong_to_the_caller(clf, images):
  for size in (1, 3, 9):
    clf(images[:size]).logits[:] = 0


def test_actions_are_a_knob_at_run_time(clf, images, oracle):
  """Table 1, masks and the learned policy in turn; nothing compiles twice."""
  mask = Actions([1, 0, 1], [0, 0, 1])
  table_1 = Actions(np.float32([0, 1, 1]), np.float32([0, 0, 1]))
  want = [(4, table_1), ('101001', mask), (mask, mask)]
  answers = []

  def run():
    answers.clear()
    for value in (*(value for value, _ in want), None):
      clf.actions = value
      answers.append(clf(images[:4]))

  first, again = _compilations(run)
  assert clf.actions is None
  # The policy's program may have been compiled by the tests before.
  assert first - 2 in (0, 1) and again == 0
  *given, learned = answers
  forward = jax.jit(lambda params, images, actions: modes.forward(
      clf.system.model, params, clf.system.normalize(images), actions,
      mode='masked').total)
  for got, (_, kept) in zip(given, want, strict=True):
    np.testing.assert_array_equal(got.actions.msa, [kept.msa] * 4)
    np.testing.assert_array_equal(got.actions.mlp, [kept.mlp] * 4)
    actions = Actions(*map(np.float32, kept))
    assert set(got.macs) == {clf.system.plain_cost.adaptive(actions)}
    np.testing.assert_allclose(got.logits, forward(
        clf.params, images[:4], actions), **CLOSE)
  logits, actions = oracle(images, 0.5)
  np.testing.assert_allclose(learned.logits, logits[:4], **CLOSE)
  np.testing.assert_array_equal(learned.actions.keep, actions.keep[:4])


@pytest.mark.nightly
def test_a_stochastic_policy_draws_by_key(clf, images):
  """An image's layers depend on key and place, not on how batches are cut."""
  key, num_layers = jax.random.key(5), (3, 3)
  answers = []

  def run():
    for final in (0.2, 0.7):
      clf.actions = adavit_jax.Stochastic(final)
      answers[:] = [clf(images[:num], key=key) for num in (4, 1, 9)]

  try:
    _, again = _compilations(run)
    with pytest.raises(ValueError, match='^key=None'):
      clf(images)
  finally:
    clf.actions = None
  assert again == 0
  with pytest.raises(ValueError, match='^key='):
    clf(images, key=key)
  want = jax.device_get(fixed.stochastic_rows(
      key, np.arange(9), num_layers, final=np.float32(0.7)))
  assert len(np.unique(want.keep, axis=0)) > 3
  got = answers[-1]
  np.testing.assert_array_equal(got.actions.keep, want.keep)
  np.testing.assert_allclose(got.macs, clf.system.plain_cost.adaptive(want))
  np.testing.assert_allclose(got.logits, modes.forward(
      clf.system.model, clf.params, clf.system.normalize(images[:9]), want,
      mode='masked').total, **CLOSE)
  for part in answers[:2]:
    num = len(part.labels)
    np.testing.assert_array_equal(part.actions.keep, want.keep[:num])
    np.testing.assert_allclose(part.logits, got.logits[:num], **CLOSE)


@pytest.mark.parametrize('value, field', [
    (6, 'policy 6'), (1, 'cannot drop 5'), ('10', "keep='10'"),
    (True, 'actions=True'), (0.5, 'actions=0.5'),
    (Actions([1, 0, 2], [1, 1, 1]), 'an action is 2'),
    (adavit_jax.Stochastic(1.5), 'final=1.5')])
def test_wrong_actions(clf, value, field):
  with pytest.raises(ValueError, match=field):
    clf.actions = value
  assert clf.actions is None


@pytest.mark.parametrize('images', [
    np.zeros((8, 8, 1), np.uint8), np.zeros((2, 9, 9, 1), np.uint8),
    np.zeros((0, 8, 8, 1), np.uint8),
    [np.zeros((8, 9, 1), np.uint8), np.zeros((8, 8, 1), np.uint8)],
    np.zeros((2, 8, 8, 1), np.float32)])
def test_wrong_images(clf, images):
  with pytest.raises(ValueError, match='^images '):
    clf(images)


@pytest.mark.parametrize('value', [1.5, 0, None, '0.5', [0.5]])
def test_wrong_threshold(clf, value):
  with pytest.raises(ValueError, match='^threshold='):
    clf.threshold = value
  assert clf.threshold == 0.5


def test_a_file_is_read_as_the_model_takes_it(clf, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  np.testing.assert_array_equal(
      clf.read(tmp_path / 'a.png')[..., 0], pixels[:, 2:10])


@pytest.mark.parametrize('size', [0, -1, 2.5, '8'])
def test_wrong_batch_size(size):
  with pytest.raises(ValueError, match='^max_batch_size='):
    _make(max_batch_size=size)


def test_there_is_no_policy_to_ask():
  config = tiny.get_config()
  config.phases = ('dense',)
  system = system_lib.create(config, tiny.dataset())
  state = state_lib.init_state(system, 0)
  with pytest.raises(ValueError, match='^actions=None'):
    classifier.Classifier(system, state)
  clf = classifier.Classifier(system, state, actions=([1, 1, 1], [1, 1, 1]))
  with pytest.raises(AttributeError, match='^threshold .*actions'):
    clf.threshold = 0.5


@pytest.mark.parametrize('name', ['system', 'thresholds'])
def test_what_calls_would_ignore_cannot_be_set(clf, name):
  with pytest.raises(AttributeError):
    setattr(clf, name, None)


def test_a_fork_is_refused(clf, images, monkeypatch):
  pid = os.getpid()
  monkeypatch.setattr(os, 'getpid', lambda: pid + 1)
  for call in (lambda: clf(images[:1]), lambda: clf.full(images[:2]),
               lambda: clf.decisions(images[:1], [0.5])):
    with pytest.raises(RuntimeError, match=f'{pid}.*spawn'):
      call()


def test_no_run_to_load(tmp_path):
  with pytest.raises(ValueError, match='--workdir'):
    adavit_jax.load(str(tmp_path))
  with pytest.raises(ValueError, match='^phase=.*best='):
    adavit_jax.load(str(tmp_path), phase='dense', best=True)


def _with_exits(decider):
  """(system, state) of exits before and behind the place of the policy."""
  config = tiny.get_config()
  config.model.update(num_fixed=2, exits=((1, 'mlp'), (3, 'mlp')))
  config.phases = ('static', 'classifier_wise')
  config.static.update(policy='mask', keep='0110')
  if decider == 'policy':
    config.phases, config.exits.policy = ('classifier_wise',), True
  system = system_lib.create(config, tiny.dataset())
  state = state_lib.init_state(system, 0)
  rng = np.random.default_rng(1)
  policy = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32),
                        state.params.get('policy', {}))
  return system, state.replace(params={
      **state.params, **tiny.params(system.model), 'policy': policy})


def _stage_by_stage(system, params, images):
  """Every branch computed: (logits [3, B, K], `Actions` [B, 2], [B, 2])."""
  model, images = system.model, system.normalize(images)
  first, second, last = plan.exits(model)
  run = functools.partial(masked.run, model, params)
  answer = lambda x, e: params_lib.exit_logits(model, params, x, e)[0]
  x = run(modes.embed(model, params, images).x, stop=1).x
  logits = [answer(x, first)]
  x = run(x, start=1, stop=2).x
  if system.nets is None:
    actions = Actions(*np.tile([[[0., 1.]], [[1., 0.]]], (1, len(images), 1)))
  else:
    actions = learned.greedy(
        system.nets, params['policy'],
        learned.observe(system.nets, model, params, x))
  for i, e in enumerate((second, last)):
    here = Actions(*(a[:, i:i + 1] for a in actions))
    x = run(x, gates=here, start=2 + i, stop=3 + i).x
    logits.append(answer(x, e))
  return jnp.stack(logits), actions


def _macs(system, actions):
  """MACs of the images that leave at each exit, by hand: [3, B]."""
  model = system.model
  at, own = model.at, model.width * model.num_classes
  msa, mlp = encoder.macs(at.num, at.width, at.mlp_dim)
  head = exit_heads.head_macs('mlp', at, model.num_classes)
  policy = system.cost.policy if system.nets else 0
  assert (policy > 0) == (system.nets is not None)
  spent = lambda i: actions.msa[:, i] * msa + actions.mlp[:, i] * mlp
  return np.cumsum([
      model.embed_macs + msa + mlp + head + 0 * spent(0),
      msa + mlp + policy + spent(0) + head, spent(1) + own], axis=0)


def _apart(values):
  """A threshold that no image is near enough for rounding to decide."""
  ranked = np.sort(values)[10:24]
  i = np.diff(ranked).argmax()
  assert np.diff(ranked)[i] > 1e-4
  return ranked[i:i + 2].mean()


@pytest.mark.parametrize('decider', [
    pytest.param('policy', marks=pytest.mark.nightly), 'mask'])
def test_stages_that_drop_layers_behind_an_exit(images, decider):
  system, state = _with_exits(decider)
  logits, actions = jax.device_get(jax.jit(functools.partial(
      _stage_by_stage, system))(state.params, images))
  if decider == 'policy':
    assert len(np.unique(actions.keep, axis=0)) > 5
  macs = _macs(system, actions)
  if decider == 'mask':
    at, num_classes = system.model.at, system.model.num_classes
    heads = 2 * exit_heads.head_macs('mlp', at, num_classes)
    assert system.after('classifier_wise').full_macs == macs[-1, 0] - heads
  sure = np.float64(confidence.confidences(confidence.RULES['entropy'], logits))
  thresholds = list(map(_apart, sure[:-1]))
  clf = adavit_jax.CascadeClassifier(
      system, state, 'classifier_wise', thresholds=thresholds,
      max_batch_size=4)
  chosen, rows = confidence.choose(sure, thresholds), np.arange(33)
  assert np.bincount(chosen).min() > 2
  alone = cascade.CascadePrediction(*map(np.concatenate, zip(
      *(clf(images[i:i + 1]) for i in rows))))
  for got in (clf(images), alone):
    np.testing.assert_array_equal(got.exit, chosen)
    np.testing.assert_allclose(got.logits, logits[chosen, rows], **CLOSE)
    np.testing.assert_array_equal(
        got.labels, logits[chosen, rows].argmax(-1))
    np.testing.assert_array_equal(got.macs, macs[chosen, rows])
