"""A classifier's thresholds with a promise, watched and exported."""

import functools
import json
import types

import adavit_jax
from adavit_jax.exits import confidence
from adavit_jax.inference import batch_sizes
from adavit_jax.inference import cascade_classifier
from adavit_jax.inference import classifier
from adavit_jax.inference import export
from adavit_jax.inference import safe_thresholds
from adavit_jax.models.actions import Actions
from adavit_jax.promise import promises
from adavit_jax.runtime import cascade
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
import tiny

RISK = dict(risk=0.2, confidence=0.9)  # at least 11 images


def _images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)


@functools.cache
def _made(exits, policy):
  config = tiny.get_config()
  config.phases = ('dense', 'warm_start', 'policy') if policy else ('dense',)
  if exits:
    config.model.exits = ((1, 'mlp'), (3, 'mlp'))
    config.phases = (*(('warm_start',) if policy else ()), 'classifier_wise')
    config.exits.policy = policy
    config.exits.rule = 'max_probability'
  system = system_lib.create(config, tiny.dataset())
  state = state_lib.init_state(system, 0)
  params = {**state.params, **tiny.params(system.model)}
  # Without constant parts every exit knows every class.
  means = np.asarray(jax.jit(functools.partial(
      adavit_jax.exit_logits, system.model))(
          params, system.normalize(_images()))).mean(1)
  layers = [params['heads'][f'exit_{i}']['head'] for i in range(2 * exits)]
  for layer, mean in zip(
      [*layers, params['backbone']['head']], means, strict=True):
    layer['bias'] -= mean
  if policy:
    rng = np.random.default_rng(1)
    params['policy'] = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        state.params['policy'])
  return system, state.replace(params=params), config.phases[-1]


@functools.cache
def _compiled(exits, policy):
  system, state, phase = _made(exits, policy)
  if exits:
    return cascade_classifier.CascadeClassifier(
        system, state, phase, max_batch_size=64)
  return classifier.Classifier(system, state, max_batch_size=64)


def _make(exits, policy):
  """A classifier without a promise."""
  clf = _compiled(exits, policy)
  if exits:
    clf.thresholds = confidence.NEVER
  if policy:
    clf.threshold = 0.5
  return clf


@pytest.fixture(scope='module', autouse=True)
def few_sizes():
  with pytest.MonkeyPatch.context() as patch:  # fewer programs to compile
    patch.setattr(cascade, 'SIZES', (1,))
    patch.setattr(batch_sizes, 'up_to', lambda largest: [largest])
    yield


@pytest.fixture(scope='module')
def images():
  return _images()


def _full(clf, images):
  """All layers and no exit, by the plain forward pass."""
  model = clf.system.model
  return np.asarray(jax.jit(lambda params, images: adavit_jax.forward(
      model, params, images).total)(
          clf.params, clf.system.normalize(images)))


@pytest.mark.parametrize('exits, policy', [
    pytest.param(True, False, marks=pytest.mark.nightly), (False, True),
    pytest.param(True, True, marks=pytest.mark.nightly)])
def test_thresholds_of_a_classifier(images, exits, policy):
  clf = _make(exits, policy)
  full = _full(clf, images)
  np.testing.assert_allclose(clf.full(images), full, rtol=1e-4, atol=1e-4)
  assert clf.promise is None
  promise = adavit_jax.calibrate(clf, images, kind='disagreement', **RISK)
  assert clf.promise is promise and promise.kind == 'disagreement'
  assert promise.num_images == 64
  assert promise.num_tested == (43 if exits else 64)
  if exits:
    assert clf.thresholds.tolist() == list(promise.thresholds)
    assert promise.rule == 'max_probability'
  if policy:
    assert clf.threshold == pytest.approx(promise.number)
  # What was recorded is what runs.
  order = np.random.default_rng(0).permutation(64)[-promise.num_tested:]
  prediction = clf(images[order])
  assert promise.macs == pytest.approx(prediction.macs.mean())
  if promise.passed:
    differs = prediction.labels != full.argmax(-1)[order]
    assert promise.observed == differs.mean()
    assert promise.limit <= promise.risk == promise.disagreement
  # A threshold of one's own ends it.
  if policy:
    clf.threshold = 0.6
    assert clf.threshold == pytest.approx(0.6) and clf.promise is None

  if exits:
    clf.promise = promise
    clf.thresholds = 0.5
    assert clf.promise is None


@pytest.mark.nightly
def test_a_policys_threshold_in_a_cascade(images):
  """It changes the layers that run, and compiles nothing."""
  clf = _make(True, True)
  start = clf.threshold
  macs = []
  for threshold in (safe_thresholds.KEEP_ALL, start, 1 - 1e-6):
    clf.threshold = threshold
    got = clf(images)
    macs.append(got.macs.mean())
    want = clf.at_exits(images)
    np.testing.assert_array_equal(got.labels, want.prediction[-1])
    np.testing.assert_allclose(got.macs, want.macs.sum(0), rtol=1e-6)
    np.testing.assert_array_equal(
        clf.at_exits(images, threshold).prediction, want.prediction)
  assert macs[0] > macs[1] > macs[2]
  clf.threshold = safe_thresholds.KEEP_ALL
  np.testing.assert_allclose(
      clf(images).logits, _full(clf, images), rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match='^threshold=1 '):
    clf.threshold = 1
  promise = adavit_jax.calibrate(clf, images, **RISK)
  before = clf.threshold
  with pytest.raises(ValueError, match='^thresholds='):
    clf.promise = promise._replace(number=0.25, thresholds=(0.5,) * 3)
  assert clf.threshold == before
  with pytest.raises(AttributeError, match='^threshold '):
    _make(True, False).threshold = 0.5


@pytest.mark.nightly
def test_the_price_of_a_value_policy(images):
  """Two masks: of a low price the first, of a high one the cheaper second."""
  system, state, _ = _made(False, True)
  system = system.deciding('value')
  value, masks = state.params['value'], [[1, 1, 1], [1, 0, 0]]
  kernel = np.zeros((len(value.kernel), 2), np.float32)
  value = value._replace(
      kernel=kernel, bias=np.float32([0.5, 0.4]), masks=Actions(
          *map(np.float32, (masks, masks))), price=np.float32(0.01))
  clf = classifier.Classifier(system, state.replace(
      params={**state.params, 'value': value}), max_batch_size=64)
  full = _full(clf, images).argmax(-1)
  np.testing.assert_array_equal(clf(images).labels, full)
  # The second mask saves MACs, and is right wherever the full model is not.
  promise = adavit_jax.calibrate(clf, images, (full + 1) % 4, **RISK)
  assert promise.passed and promise.knob == 'price'
  assert clf.price == promise.number > 0.1 and clf.promise is promise
  np.testing.assert_array_equal(
      clf(images).actions.msa, [[1, 0, 0]] * len(images))
  # Every change is a harm: all layers run.
  promise = adavit_jax.calibrate(clf, images, full, **RISK)
  assert not promise.passed and promise.number is None
  np.testing.assert_array_equal(clf(images).labels, full)
  assert clf.promise is promise and clf(images).actions.keep.all()
  # It may be tried again, with more images or another risk.
  assert adavit_jax.calibrate(clf, images, full, **RISK) == promise
  clf.price = 1.
  assert clf.promise is None and clf.actions is None
  np.testing.assert_array_equal(
      clf(images).actions.msa, [[1, 0, 0]] * len(images))


def test_labels_are_read(images):
  """The model's own predictions as labels: every disagreement is a harm."""
  clf = _make(True, False)
  labels = _full(clf, images).argmax(-1)
  found = [adavit_jax.calibrate(clf, images, *given, **RISK)
           for given in ((labels,), ())]
  assert [x.kind for x in found] == ['harm', 'disagreement']
  assert found[0].thresholds == found[1].thresholds
  assert found[0].disagreement >= found[0].limit
  wrong = (labels + 1) % 4  # the full model is never right: no harm is done
  found = adavit_jax.calibrate(clf, images, wrong, **RISK)
  assert found.passed and found.observed == 0


@pytest.mark.parametrize('given, field', [
    (dict(risk=None), 'risk=None'), (dict(risk=1.5), 'risk=1.5'),
    (dict(labels=np.arange(64) % 4, kind='gap', confidence=0.9999),
     'confidence=0.9999.*harm'), (dict(confidence=0), 'confidence=0'),
    (dict(risk=0.001), '64 images .* risk=0.001 .* [0-9]{4} '),
    (dict(labels=np.full(64, 4)), 'labels '),
    (dict(labels=np.full(64, 1)), 'labels .* class 1'),
    (dict(kind='harm'), 'labels=None'), (dict(kind='gap '), "kind='gap '"),
    (dict(kind='disagreement', bound=1.), 'bound=1')])
def test_bad_input_is_refused_before_anything_runs(
    images, given, field, monkeypatch):
  clf = _make(True, False)
  monkeypatch.delattr(cascade_classifier.CascadeClassifier, 'at_exits')
  with pytest.raises(ValueError, match=f'^{field}'):
    adavit_jax.calibrate(clf, images, **dict(RISK, **given))


def test_models_that_cannot_be_calibrated(images):
  system, state, _ = _made(False, True)
  fixed = classifier.Classifier(
      system, state, actions=([1, 1, 0], [1, 0, 1]))
  with pytest.raises(ValueError, match='^clf'):
    adavit_jax.calibrate(fixed, images, **RISK)
  system, state, phase = _made(True, False)
  broken = jax.tree.map(lambda x: x * np.nan, state.params)
  clf = cascade_classifier.CascadeClassifier(
      system, state.replace(params=broken), phase)
  with pytest.raises(ValueError, match='^logits .* 64 of 64 '):
    adavit_jax.calibrate(clf, images, **RISK)
  promise = adavit_jax.calibrate(_make(False, True), images, **RISK)
  with pytest.raises(ValueError, match='^promise'):
    clf.promise = promise


def test_a_promise_is_exported(images, tmp_path):
  for exits in (True, False):
    clf = _make(exits, not exits)
    promise = adavit_jax.calibrate(clf, images, **RISK)
    if exits:
      export.export_stages(clf, tmp_path, platforms=('cpu',))
      about = json.loads((tmp_path / 'stage_0.json').read_text())
      assert about['thresholds'] == list(promise.thresholds)
    else:
      export.export(clf, tmp_path / 'a', mode='cond', platforms=('cpu',))
      about = json.loads((tmp_path / 'a.json').read_text())
      assert about['threshold'] == promise.number
    read = promises.Promise.from_dict(about['promise'])
    assert str(read) == str(promise)
    assert (read.risk, read.confidence) == (0.2, 0.9)


def test_a_watch(images, caplog):
  clf = _make(True, False)
  with pytest.raises(ValueError, match='^clf '):
    adavit_jax.watch(clf)
  assert adavit_jax.watch(clf, bound=0.1).bound == 0.1
  labels = (_full(clf, images).argmax(-1) + 1) % 4
  adavit_jax.calibrate(clf, images, labels, **RISK)  # all leave at the first
  assert clf.promise.share_early > 0.5
  differs = (clf(images).labels != clf.full(images).argmax(-1)).mean()
  assert differs > 0.3
  calm = adavit_jax.watch(clf, share=0.5, bound=0.95)
  got = calm(images)
  np.testing.assert_array_equal(got.labels, clf(images).labels)
  assert calm.num_seen == 64 and 16 < calm.num_checked < 48
  assert calm.alarm is None and calm.at_least < 0.95
  watch = adavit_jax.watch(clf, share=1, bound=0.01)
  for _ in range(4):
    watch(images[:16])
  assert watch.num_checked == 64 and 1 < watch.alarm < 32
  assert watch.at_least >= 0.01 and 'bound=0.01' in repr(watch)
  assert 'calibrate again' in caplog.text
  assert watch.disagreement == pytest.approx(4 * (
      clf(images[:16]).labels != clf.full(images[:16]).argmax(-1)).sum() / 64)
  for given in (dict(share=0), dict(bound=1.), dict(confidence=2.)):
    with pytest.raises(ValueError, match=f'^{next(iter(given))}='):
      adavit_jax.watch(clf, **given)
  clf.promise = None
  assert clf.promise is None and clf(images).exit.mean() < 1


def test_a_watch_counts_non_numeric_outputs_as_disagreement():
  clf = types.SimpleNamespace(
      promise=None, system=types.SimpleNamespace(target=None),
      full=lambda images: np.where(images[:, None] > 2, np.nan, [1., 0.]))
  watch = adavit_jax.watch(clf, share=1, bound=0.5)
  watch.check(np.arange(8), np.zeros(8, int))
  assert watch.disagreement == 5 / 8
