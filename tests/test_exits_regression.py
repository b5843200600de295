"""A regression with exits from its data to a classifier; what is refused."""


import adavit_jax
from adavit_jax import cost
from adavit_jax import data
from adavit_jax import report
from adavit_jax.data import splits
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.report import exit_report
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
from test_multi_exit_training import _between
from test_multi_exit_training import _config
from test_multi_exit_training import _fresh
import tiny


def _regression():
  """The label of an image is how bright it is, in degrees."""
  rng = np.random.default_rng(0)
  def split(n):
    labels = rng.uniform(-40, 40, n).astype(np.float32)
    images = rng.integers(0, 60, (n, 8, 8, 1)) + np.rint(
        labels + 60).astype(int)[:, None, None, None]
    return data.ArraySplit(images.astype(np.uint8), labels)
  train, holdout, test = split(40), split(16), split(16)
  mean, std = splits.channel_stats(train)
  return data.Dataset(
      train, holdout, test, num_classes=0, class_names=(), channels=1,
      image_size=8, mean=mean, std=std, target=data.Target(
          float(train.labels.mean()), float(train.labels.std()), 'degrees'))


@pytest.fixture(scope='module')
def regression(steps, tmp_path_factory):
  """(work directory, trainer, final state)."""
  workdir, dataset = str(tmp_path_factory.mktemp('degrees')), _regression()
  trainer = loop.Trainer(
      _config('exits', **{'exits.rule': 'agreement', 'exits.steps': 3,
                          'mac_target': 0.99}),
      workdir, dataset)
  return workdir, trainer, trainer.train()


def _report(trainer, workdir):
  about = dict(workdir=workdir, phase='exits', num_test=16, seed=0, device='')
  with saved_run.Run(workdir) as run:
    return exit_report.evaluate(
        trainer, run.state(run.find(), trainer.system, trainer.mesh), about)


def test_regression_end_to_end(regression, capsys):
  workdir, trainer, state = regression
  dataset = trainer.dataset
  before = _fresh(trainer)
  for group in ('backbone', 'heads'):
    assert not states.same(state.params[group], before[group])
  system, test = trainer.system, dataset.test
  np.testing.assert_array_equal(system.weights, [1, 1, 2])

  images = test.images(np.arange(16))
  found = trainer.exit_evaluator('exits', state.params, test)
  degrees = found.prediction
  errors = degrees - test.labels
  # The loss is that of the normalized outputs.
  np.testing.assert_allclose(
      found.loss, (errors / dataset.target.std)**2, rtol=1e-3)

  result = _report(trainer, workdir)
  stages = system.cost.stages
  heads = [cost.head_macs(system.model, e) for e in system.exits[:2]]
  for i, row in enumerate(result['exits']):
    assert 'accuracy' not in row
    np.testing.assert_allclose(row['mae'], np.abs(errors[i]).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        row['rmse'], np.sqrt((errors[i]**2).mean()), rtol=1e-4)
    assert row['macs'] == sum(stages[:i + 1]) - sum(heads[:i])
    assert row['macs_ratio'] == row['macs'] / system.cost.dense
  assert [row.get('layer') for row in result['exits']] == [1, 3, None]
  rows = [result[key] for key in ('same_accuracy', 'slack', 'mac_target')]
  for row in rows + result['curve']:
    assert len(row['thresholds']) == 2
    chosen = confidence_lib.choose(
        confidence_lib.confidences(system.rule, degrees[..., None]),
        row['thresholds'])
    found = errors[chosen, np.arange(16)]
    np.testing.assert_allclose(row['mae'], np.abs(found).mean(), rtol=1e-4)
    assert row['shares'][0] == 0  # nothing to agree with
  out = capsys.readouterr().out
  assert 'MAE, degrees' in out and 'exit 1 alone, layer 3, mlp' in out

  clf = adavit_jax.load(workdir, max_batch_size=16)
  gaps = np.abs(degrees[1] - degrees[0])
  clf.thresholds = -_between(gaps, 8)
  got = clf(images)
  leaves = np.where(gaps < _between(gaps, 8), 1, 2)
  np.testing.assert_array_equal(got.exit, leaves)
  assert got.labels.shape == (16,)
  np.testing.assert_allclose(
      got.labels, degrees[leaves, np.arange(16)], rtol=1e-4, atol=1e-3)
  np.testing.assert_array_equal(got.macs, np.cumsum(stages)[leaves])


def test_the_last_exit_meets_its_own_accuracy(regression, monkeypatch):
  """Also where its mean score rounds up in float32 and no exit is better."""
  workdir, trainer, state = regression
  found = trainer.exit_evaluator('exits', state.params, trainer.dataset.test)
  scores = -np.random.default_rng(0).uniform(size=(100, 16))
  last = next(x for x in scores.astype(np.float32)
              if x.mean() > x.mean(dtype=np.float64) * (1 - 3e-8))
  found = found._replace(score=np.stack([last - 2, last - 1, last]))
  monkeypatch.setattr(
      type(trainer.exit_evaluator), '__call__', lambda *args: found)
  row = _report(trainer, workdir)['same_accuracy']
  assert row['shares'] == [0, 0, 1]


@pytest.mark.nightly
def test_a_regression_without_early_exits(tmp_path, monkeypatch):
  """Whatever the rule, which it has no use for."""
  trainer = loop.Trainer(
      _config('exits', **{'model.exits': None, 'exits.steps': 1}),
      str(tmp_path), _regression())
  monkeypatch.setattr(step_lib, 'make_step', states.noise)
  state = trainer.train()
  found = trainer.exit_evaluator('exits', state.params, trainer.dataset.test)
  clf = adavit_jax.load(str(tmp_path), max_batch_size=16)
  got = clf(trainer.dataset.test.images(np.arange(16)))
  np.testing.assert_allclose(
      got.labels, found.prediction[0], rtol=1e-4, atol=1e-3)
  assert set(got.macs) == {trainer.system.cost.dense}
  monkeypatch.setattr(data, 'load', lambda *args, **kwargs: trainer.dataset)
  result = report.evaluate(str(tmp_path))
  row, = result['exits']
  np.testing.assert_allclose(row['mae'], -found.score.mean(), rtol=1e-4)
  assert row['macs'] == trainer.system.cost.dense
  assert not {'curve', 'same_accuracy', 'slack', 'mac_target'} & set(result)
  with pytest.raises(ValueError, match='^--threshold='):
    report.evaluate(str(tmp_path), threshold=-1.)
  with pytest.raises(ValueError, match='^--slack=0.1'):
    report.evaluate(str(tmp_path), threshold=-1., slack=0.1)
  again = adavit_jax.load(str(tmp_path), rule='margin', max_batch_size=16)
  np.testing.assert_array_equal(
      again(trainer.dataset.test.images(np.arange(16))).labels, got.labels)
  for given, field in ((dict(rule='typo'), 'exits.rule'),
                       (dict(thresholds=-1.), 'thresholds'),
                       (dict(decide='networks'), 'decide')):
    with pytest.raises(ValueError, match=f'^{field}='):
      adavit_jax.load(str(tmp_path), **given)


def test_the_best_of_the_heads_at_one_layer():
  rows = [dict(layer=1, head='mlp'), dict(layer=1, head='resmlp'),
          dict(layer=3, head='mlp'), {}]
  found, = exit_report.best_heads(rows, np.array([.1, .3, .2, .9]))
  assert found == dict(
      layer=1, head='resmlp', score=.3, mean=pytest.approx(.2))


@pytest.mark.nightly
def test_heads_at_one_layer_are_no_cascade(tmp_path):
  """In which every image would pay for all of them."""
  trainer = loop.Trainer(
      _config('exits', **{'model.exits': ((1, 'mlp'), (1, 'resmlp'))}),
      str(tmp_path), tiny.dataset())
  state = state_lib.init_state(trainer.system, 0)
  result = exit_report.evaluate(trainer, state, dict(
      workdir=str(tmp_path), phase='exits', num_test=16, seed=0, device=''))
  assert not {'curve', 'same_accuracy', 'slack', 'mac_target'} & set(result)
  assert [found['layer'] for found in result['best_heads']] == [1]


@pytest.mark.parametrize('kind, fields, message', [
    ('degrees', {'data.flip': True, 'exits.rule': 'agreement'},
     'config.data.flip=True'),
    ('degrees', {}, "exits.rule=.*'agreement'"),
    ('degrees', {'exits.rule': 'agreement', 'phases': ('dense',)},
     "phase 'dense' .*config.phases.*'exits'"),
    ('classes', {'exits.rule': 'agreement'}, "exits.rule=.*'entropy'"),
    ('classes', {'phases': ('exits', 'dense')}, "config.phases=.*'dense'"),
    ('classes', {'phases': ('exits', 'warm_start', 'policy', 'joint')},
     "config.phases=.*'joint'"),
    ('classes', {'phases': ('layer_wise',)},  # of 2 steps
     'layer_wise.steps=2 .*3'),
    ('classes', {'exits.policy': True, 'init.workdir': 'x'},
     "config.phases=.*'exits'"),
    ('degrees', {'exits.policy': True, 'init.workdir': 'x',
                 'exits.rule': 'agreement', 'phases': ('classifier_wise',)},
     '.*exits.policy=False'),
    ('degrees', {'exits.distill': 0.5, 'exits.rule': 'agreement'},
     'exits.distill='),
    ('classes', {'phases': ('classifier_wise',)},
     "phase 'classifier_wise' .*init.workdir")])
def test_what_does_not_fit_is_refused(tmp_path, kind, fields, message):
  dataset = tiny.dataset() if kind == 'classes' else _regression()
  with pytest.raises(ValueError, match=f'^({message})'):
    loop.Trainer(_config('exits', **fields), str(tmp_path), dataset)
