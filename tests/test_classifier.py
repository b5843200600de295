"""A trained model as a function, in whatever mode saves time."""

import functools
import re

import adavit_jax
from adavit_jax import classifier
from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.train import system as system_lib
import jax
import numpy as np
from PIL import Image
import pytest
import tiny

L = 3
CLOSE = dict(rtol=1e-4, atol=1e-4)


def _make(**kwargs):
  system = system_lib.create(tiny.get_config(), tiny.dataset())
  state = system_lib.init_state(system, 0)
  rng = np.random.default_rng(1)
  # Large enough that images decide differently.
  policy = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32),
                        state.params['policy'])
  state = state.replace(
      params={'vit': tiny.params(system.model), 'policy': policy})
  return classifier.Classifier(system, state, **kwargs), state


@pytest.fixture(scope='module')
def made():
  return _make(max_batch_size=8)


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
    vit, policy = state.params['vit'], state.params['policy']
    z1 = modes.fixed(system.model, vit, system.normalize(images))
    actions = learned.greedy(
        system.nets, policy, system.features(state.params, z1, state.stats),
        threshold=threshold)
    logits = modes.adaptive(system.model, vit, z1, actions, 'masked').total
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
    for size in range(1, 34):
      got = clf(images[:size])
      np.testing.assert_allclose(got.logits, want[:size], **CLOSE)
      np.testing.assert_array_equal(got.labels, want[:size].argmax(-1))
      np.testing.assert_array_equal(got.actions.keep, actions.keep[:size])
      np.testing.assert_allclose(got.macs, macs[:size])

  first, again = _compilations(every_size)
  assert classifier.batch_sizes(8) == [1, 2, 3, 4, 6, 8]
  assert (first, again) == (6, 0)


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
  clf = classifier.Classifier(system, system_lib.init_state(system, 0))
  assert clf.threshold == 0.7


def test_a_fixed_policy_runs_its_mask(images):
  actions = Actions.from_keep(np.float32([1, 0, 1, 0, 0, 1]))
  clf, state = _make(actions=actions, max_batch_size=4)
  got = clf(images[:3])
  run = functools.partial(modes.forward, clf.system.model, state.params['vit'])
  want = run(clf.system.normalize(images[:3]), actions, mode='static').total
  np.testing.assert_allclose(got.logits, want, **CLOSE)
  np.testing.assert_array_equal(got.actions.msa, [[1, 0, 1]] * 3)
  assert set(got.macs) == {clf.system.plain_cost.adaptive(actions)}


@pytest.mark.parametrize('images, message', [
    (np.zeros((8, 8, 1), np.uint8), r'image\[None\]'),
    (np.zeros((2, 9, 9, 1), np.uint8), r'\(2, 9, 9, 1\).*8, 8, 1'),
    (np.zeros((0, 8, 8, 1), np.uint8), 'B >= 1'),
    ([np.zeros((8, 9, 1), np.uint8), np.zeros((8, 8, 1), np.uint8)],
     r'images make no array \(.*; resize and crop each to \[8, 8, 1\], or'),
    (np.zeros((2, 8, 8, 1), np.float32), 'float32; give uint8')])
def test_wrong_images(clf, images, message):
  with pytest.raises(ValueError, match=message):
    clf(images)


@pytest.mark.parametrize('value', [1.5, 0, None, '0.5', [0.5]])
def test_wrong_threshold(images, value):
  clf = _make()[0]
  clf.threshold = value
  with pytest.raises(ValueError, match=re.escape(f'threshold={value!r} must')):
    clf(images)


def test_a_file_is_read_as_the_model_takes_it(clf, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  np.testing.assert_array_equal(
      clf.read(tmp_path / 'a.png')[..., 0], pixels[:, 2:10])


@pytest.mark.parametrize('size', [0, -1, 2.5, '8'])
def test_wrong_batch_size(size):
  with pytest.raises(ValueError, match=f'max_batch_size={size!r} must be'):
    _make(max_batch_size=size)


@pytest.mark.parametrize('name', ['actions', 'system', 'thresholds'])
def test_what_calls_would_ignore_cannot_be_set(clf, name):
  with pytest.raises(AttributeError):
    setattr(clf, name, None)


def test_no_run_to_load(tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint'):
    adavit_jax.load(str(tmp_path))
  with pytest.raises(ValueError, match="phase='dense' and best=True are two"):
    adavit_jax.load(str(tmp_path), phase='dense', best=True)
