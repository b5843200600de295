"""A model with exits from its config to a report and a classifier."""

import json
import pathlib

import adavit_jax
from adavit_jax import data
from adavit_jax import report
from adavit_jax import weights
from adavit_jax.exits import calibrate
from adavit_jax.exits import confidence
from adavit_jax.exits import cross_validation
from adavit_jax.promise import promises
from adavit_jax.report import exit_report
from adavit_jax.report import promised_row
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runs import saved_run
from adavit_jax.runtime import cascade
from adavit_jax.runtime import stages
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import trace_once  # a fixture
import tiny

STEPS = 6


def _config(**fields):
  config = tiny.get_config()
  config.phases = ('exits',)
  config.model.name = 'ravit_cifar_patch4_32'
  config.model.depth = None  # the field of a ViT
  config.model.update(image_size=8, patch_size=2, width=8, num_heads=2,
                      layers=(1, 1), factors=(2., 1.))
  config.exits.update(steps=STEPS, batch_size=8, ema=0.5, weights=(0.5, 1.),
                      slack=0.15)
  config.mac_target = 0.6
  config.seed = 2  # with which the last exit learns more than the first
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def dataset():
  return tiny.dataset()


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
  """(work directory, trainer, final state)."""
  workdir = str(tmp_path_factory.mktemp('exits'))
  trainer = loop.Trainer(_config(), workdir, dataset)
  return workdir, trainer, trainer.train()


def _rows(workdir):
  with open(f'{workdir}/metrics.jsonl') as f:
    return [json.loads(line) for line in f]


def _log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_loss_is_the_weighted_sum_of_the_exits(run, dataset):
  _, trainer, _ = run
  system = system_lib.create(_config(**{'exits.weights': (3., 0.25)}), dataset)
  state = state_lib.init_state(system, 0)
  params = tiny.params(system.model)
  images = dataset.train.images(np.arange(8))
  labels = dataset.train.labels[:8]
  # The first phase augments: only its targets are known without its code.
  targets = np.float32(np.eye(4)[labels] * 0.8 + 0.05)
  batch = step_lib.Batch(system.normalize(images), targets, labels)
  run_loss = jax.jit(lambda params: phases.PHASES['exits'].loss(
      system, params, state, batch, None, 0))
  total, (metrics, updates) = run_loss(params)

  logits = np.asarray(jax.jit(lambda p: stages.exit_logits(
      system.model, p, batch.images))(params))
  each = -(targets * _log_softmax(logits)).sum(-1).mean(-1)
  np.testing.assert_allclose(total, 3 * each[0] + 0.25 * each[1], rtol=1e-5)
  assert updates == {}
  for i in range(2):
    np.testing.assert_allclose(metrics[f'loss_{i}'], each[i], rtol=1e-5)
    assert metrics[f'accuracy_{i}'] == (
        logits[i].argmax(-1) == labels).mean()
  # One number is the weight of every exit.
  one = system_lib.create(_config(**{'exits.weights': (0.5,)}), dataset)
  np.testing.assert_array_equal(one.weights, [0.5] * 2)


def test_early_exits_learn_from_the_last_one(dataset):
  """And the last one does not learn from them."""
  c = {'exits.distill': 0.25, 'exits.temperature': 3., 'exits.weights': (2.,)}
  system = system_lib.create(_config(**c), dataset)
  state = state_lib.init_state(system, 0)
  params = tiny.params(system.model)
  images = system.normalize(dataset.train.images(np.arange(8)))
  labels = dataset.train.labels[:8]
  targets = np.float32(np.eye(4)[labels])
  batch = step_lib.Batch(images, targets, labels)
  total = lambda params: phases.PHASES['exits'].loss(
      system, params, state, batch, None, 0)
  (value, (metrics, _)), gradient = jax.jit(
      jax.value_and_grad(total, has_aux=True))(params)

  first, last = np.asarray(jax.jit(lambda p: stages.exit_logits(
      system.model, p, images))(params))
  ce = [-(targets * _log_softmax(y)).sum(-1).mean() for y in (first, last)]
  p, q = _log_softmax(last / 3), _log_softmax(first / 3)
  want = 0.75 * ce[0] + 0.25 * 9 * (np.exp(p) * (p - q)).sum(-1).mean()
  np.testing.assert_allclose(metrics['loss_0'], want, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss_1'], ce[1], rtol=1e-5)
  np.testing.assert_allclose(value, 2 * want + 2 * ce[1], rtol=1e-5)

  plain = system_lib.create(_config(**{'exits.weights': (0., 2.)}), dataset)
  alone = jax.jit(jax.grad(lambda params: phases.PHASES['exits'].loss(
      plain, params, state, batch, None, 0)[0]))(params)
  for a, b in zip(*(jax.tree.leaves(tree['backbone']['head_1'])
                    for tree in (gradient, alone)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_images_are_mixed_where_no_reward_needs_one_class():
  names = 'dense', 'exits', 'joint', 'classifier_wise'
  config = _config(**{'data.mixup': 0.4, 'phases': names})
  mixup = [step_lib.augmentation(config, phase).mixup for phase in names]
  assert mixup == [0.4, 0.4, 0, 0]  # a policy decides in the last one too
  config.phases = 'dense', 'static', 'classifier_wise'
  mixup = [step_lib.augmentation(config, phase).mixup
           for phase in config.phases]
  assert mixup == [0.4, 0, 0.4]


def test_a_policy_sees_images_cropped_as_at_inference():
  for policy_padding, want in ((0, [2, 0, 0]), (None, [2, 2, 2])):
    config = _config(**{'data.crop_padding': 2,
                        'data.policy_crop_padding': policy_padding})
    config.phases = 'dense', 'warm_start', 'static'
    padding = [step_lib.augmentation(config, phase).crop_padding
               for phase in config.phases]
    assert padding == want
  config.data.update(crop_padding=0, resized_crop=0.5, policy_resized_crop=0.)
  assert [step_lib.augmentation(config, phase).resized_crop
          for phase in config.phases] == [0.5, 0, 0]
  config.phases = 'classifier_wise',
  config.data.update(crop_padding=2, resized_crop=0., policy_crop_padding=0)
  for policy, want in ((True, 0), (False, 2)):  # where exits are trained
    config.exits.policy = policy
    config.data.mixup = 0.5
    got = step_lib.augmentation(config, 'classifier_wise')
    assert got.crop_padding == want and (got.mixup > 0) == (not policy)


def test_metrics_of_a_run(run):
  workdir, _, state = run
  assert int(state.step) == STEPS
  assert set(state.params) == set(state.ema) == {'backbone'}
  assert state.teacher is None
  rows = _rows(workdir)
  trained = {'loss', 'learning_rate', 'grad_norm'}
  trained |= {f'{k}_{i}' for k in ('loss', 'accuracy') for i in range(2)}
  assert set(rows[0]) == {'step'} | {f'exits/{k}' for k in trained}
  held = rows[-1]
  assert set(held) == {'step', 'holdout/accuracy', 'holdout/loss'}
  assert np.shape(held['holdout/accuracy']) == (2,)


@pytest.mark.nightly
def test_resumed_run_equals_the_uninterrupted_one(
    run, tmp_path, monkeypatch):
  workdir, trainer, whole = run
  monkeypatch.setattr(trainer, 'workdir', str(tmp_path))
  asked = iter(range(1, STEPS + 1))
  monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                      lambda self: next(asked) == 3)
  assert trainer.train() is None
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 3)
  # A run without policy networks does not mind what is said of them.
  monkeypatch.setitem(trainer.config.nets, 'head', False)
  again = trainer.train()
  assert states.same(again, whole)
  assert _rows(tmp_path) == _rows(workdir)


@pytest.fixture
def tiny_data(dataset, monkeypatch):
  monkeypatch.setattr(data, 'load', lambda *args, **kwargs: dataset)


def test_report_has_what_it_promises(run, dataset, tiny_data, capsys):
  workdir, trainer, state = run
  result = report.evaluate(workdir)
  assert json.loads(json.dumps(result)) == result
  params = state_lib.final_params(state)
  held, test = (trainer.exit_evaluator('exits', params, split)
                for split in (dataset.holdout, dataset.test))
  assert test.score.shape == (2, len(dataset.test))
  macs = trainer.system.cost.stages
  for i, row in enumerate(result['exits']):
    assert row['accuracy'] == test.score[i].mean()
    assert row['macs'] == sum(macs[:i + 1])
    assert row['paper_flops'] == sum(
        trainer.system.model.paper_flops()[:i + 1])
  images = held.confidence, held.score, macs
  for name, found in (
      ('same_accuracy', cross_validation.losing_at_most(*images, lost=0)),
      ('slack', cross_validation.losing_at_most(
          *images, lost=trainer.config.exits.slack)),
      ('mac_target', calibrate.calibrate(*images, max_macs=0.6 * sum(macs)))):
    want = calibrate.evaluate(
        test.confidence, test.score, macs, found.thresholds)
    row = result[name]
    assert row['thresholds'] == found.thresholds.tolist()
    assert row['shares'] == want.shares.tolist()
    assert row['accuracy'] == pytest.approx(want.accuracy)
    assert row['macs'] == pytest.approx(want.macs)
  assert result['slack']['thresholds'] != result['same_accuracy']['thresholds']
  macs = [row['macs'] for row in result['curve']]
  assert macs == sorted(macs)
  assert {len(row['thresholds']) for row in result['curve']} == {
      len(result['exits']) - 1}
  with open(f'{workdir}/exits.png', 'rb') as f:
    assert f.read(8) == b'\x89PNG\r\n\x1a\n'
  out = capsys.readouterr().out
  assert 'exit 1 alone' in out and 'cascade, mac_target' in out
  # What is printed is what was measured, to the last digit.
  printed = out.split('cascade, same accuracy: --rule=entropy --threshold=')[1]
  want, = result['same_accuracy']['thresholds']
  assert float(printed.split()[0]) == want


def test_report_with_a_threshold_or_a_target_too_low(
    run, monkeypatch):
  workdir, trainer, _ = run
  about = dict(workdir=workdir, phase='exits', num_test=16, seed=0, device='')
  for wrong in ([0., 0.], np.nan):
    with pytest.raises(ValueError, match='^threshold'):  # before any compute
      exit_report.evaluate(trainer, None, about, threshold=wrong)
  with saved_run.Run(workdir) as opened:
    state = opened.state(opened.find(), trainer.system, trainer.mesh)
  args = trainer, state, about
  result = exit_report.evaluate(*args, threshold=confidence.ALWAYS)
  assert result['threshold']['shares'] == [1, 0]
  assert not {'curve', 'mac_target', 'same_accuracy'} & set(result)
  monkeypatch.setattr(trainer.config, 'mac_target', 1e-3)
  result = exit_report.evaluate(*args)
  assert 'mac_target' not in result and 'same_accuracy' in result


@pytest.mark.nightly
def test_report_with_a_promise(run, dataset, tiny_data, capsys):
  workdir, trainer, state = run
  for name, value in (('price', 0.5), ('ceiling', True), ('actions', '5')):
    with pytest.raises(ValueError, match=f'^--{name}={value} '):
      report.evaluate(workdir, **{name: value})
  with pytest.raises(ValueError, match='^--risk=0.1: 16 images .* 29 '):
    report.evaluate(workdir, wanted=promised_row.Wanted(0.1))
  result = report.evaluate(workdir, wanted=promised_row.Wanted(0.3, 0.9))
  assert json.loads(json.dumps(result)) == result
  row = result['promised']
  promise = promises.Promise.from_dict(row['promise'])
  assert row['thresholds'] == list(promise.thresholds)
  assert (promise.num_images, promise.rule) == (16, 'entropy')
  test = trainer.exit_evaluator(
      'exits', state_lib.final_params(state), dataset.test)
  chosen = confidence.choose(test.confidence, promise.thresholds)
  score = test.score[chosen, np.arange(16)]
  assert row['accuracy'] == score.mean()
  assert row['test_loss'] == ((test.score[-1] == 1) & (score == 0)).mean()
  out = capsys.readouterr().out
  assert 'cascade, promised risk' in out and str(promise) in out
  # Another program finds it there, for this checkpoint alone.
  pathlib.Path(workdir, 'report.json').write_text(json.dumps(result))
  with saved_run.Run(workdir) as opened:
    saved = opened.find()
  clf = adavit_jax.load(workdir)
  clf.promise = promised_row.read(workdir, saved)
  assert clf.promise == promise
  assert clf.thresholds.tolist() == list(promise.thresholds)
  with pytest.raises(ValueError, match='^the promise .* step'):
    promised_row.read(workdir, saved._replace(step=1))
  pathlib.Path(workdir, 'report.json').write_text('{')
  with pytest.raises(ValueError, match='report.json is damaged'):
    promised_row.read(workdir, saved)
  pathlib.Path(workdir, 'report.json').unlink()
  with pytest.raises(ValueError, match='report.json .*--risk'):
    promised_row.read(workdir, saved)


def test_a_run_loads_as_a_cascade(run, dataset):
  workdir, trainer, _ = run
  clf = adavit_jax.load(workdir, max_batch_size=2)
  images = dataset.test.images(np.arange(13))
  logits = np.asarray(jax.jit(lambda p, x: stages.exit_logits(
      trainer.system.model, p, trainer.system.normalize(x)))(
          clf.params, images))
  got = clf(images)
  np.testing.assert_allclose(got.logits, logits[-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(got.exit, 1)

  sure = np.asarray(confidence.confidences(
      confidence.RULES['entropy'], logits), np.float64)
  # Between two images each, so that no rounding decides.
  clf.thresholds = np.sort(sure[0])[[5, 6]].mean()
  chosen = confidence.choose(sure, clf.thresholds)
  assert chosen.sum() == 6
  want = logits[chosen, np.arange(13)]
  streamed = cascade.CascadePrediction(
      *map(np.stack, zip(*clf.stream(iter(images)))))
  for got in (clf(images), streamed):
    np.testing.assert_array_equal(got.exit, chosen)
    np.testing.assert_allclose(got.logits, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        got.macs, trainer.system.cost.exits[chosen])
  assert clf.class_names == dataset.class_names

  with pytest.raises(ValueError, match='read-only'):
    clf.thresholds[0] = 1.
  with pytest.raises(ValueError, match='^threshold 0.3 .* -0.3 '):
    clf.thresholds = 0.3
  with pytest.raises(ValueError, match='^images '):
    clf(np.float32(images))
  with pytest.raises(ValueError, match='^images '):
    next(clf.stream([np.zeros((9, 9, 1), np.uint8)]))


@pytest.mark.nightly
def test_another_rule_than_the_one_of_the_config(run, dataset, tiny_data):
  workdir, trainer, state = run
  images = dataset.test.images(np.arange(16))
  logits = np.asarray(jax.jit(lambda p, x: stages.exit_logits(
      trainer.system.model, p, trainer.system.normalize(x)))(
          state_lib.final_params(state), images))
  sure = np.float64(confidence.confidences(confidence.RULES['margin'], logits))
  middle = np.sort(sure[0])[[7, 8]].mean()  # a threshold that entropy refuses
  clf = adavit_jax.load(workdir, rule='margin', thresholds=middle)
  np.testing.assert_array_equal(
      clf(images).exit, confidence.choose(sure, middle))
  with pytest.raises(ValueError, match='^actions='):
    adavit_jax.load(workdir, actions=adavit_jax.Actions([1], [1]))
  result = report.evaluate(workdir, rule='margin', threshold=middle)
  assert result['rule'] == 'margin'
  assert result['threshold']['shares'] == [0.5, 0.5]


VIT = {'model.name': 'vit_digits_patch2_8', 'model.layers': None,
       'model.factors': None, 'model.depth': 4}


# RAViT without and with an added exit, ViT likewise, and phases in an order in
# which a run may have them all.
MODELS = {
    'ravit': ({}, ('exits', 'last_exit', 'layer_wise', 'dense', 'static',
                   'warm_start', 'policy', 'joint')),
    'ravit_exit': ({'model.num_fixed': 0, 'model.exits': ((1, 'mlp'),)},
                   ('exits', 'layer_wise', 'dense', 'classifier_wise')),
    'vit': (VIT, ('exits', 'last_exit', 'layer_wise')),
    'vit_exits': ({**VIT, 'model.exits': ((1, 'mlp'), (2, 'mlp'))},
                  ('exits', 'dense', 'static', 'warm_start', 'policy', 'joint',
                   'classifier_wise'))}
# Which no other test compiles, or which have most of the others in them.
FIRST = {'ravit': ('layer_wise', 'joint'),
         'ravit_exit': ('classifier_wise',)}


@pytest.mark.parametrize('model, names', [
    *FIRST.items(), *(
        pytest.param(model, tuple(
            name for name in names if name not in FIRST.get(model, ())),
                     marks=pytest.mark.nightly)
        for model, (_, names) in MODELS.items())])
def test_every_phase_trains_every_model(dataset, tmp_path, model, names):
  """Nothing is compiled."""
  fields, every = MODELS[model]
  config = _config(**{'phases': every, 'exits.weights': (1.,),
                      'static.policy': 'stochastic', 'mac_target': 0.99},
                   **fields)
  for name in every:
    config[name].batch_size = 8
  system = loop.Trainer(config, str(tmp_path), dataset).system
  for name in names:
    states.check_step(system, name)


@pytest.mark.nightly
def test_a_single_exit_is_trained_as_the_dense_model_is(dataset):
  """On a plain ViT, where nothing else is asked of the dense phase."""
  config = _config(**VIT, **{'exits.weights': (1.,)})
  config.dense.update(drop_path=0., nested=0., mask_weight=0.)
  system = system_lib.create(config, dataset)
  state = state_lib.init_state(system, 0)
  images = system.normalize(dataset.train.images(np.arange(8)))
  labels = dataset.train.labels[:8]
  batch = step_lib.Batch(images, np.float32(np.eye(4)[labels]), labels)
  run = lambda phase: jax.jit(jax.value_and_grad(lambda params: (
      phases.PHASES[phase].loss(system, params, state, batch,
                                jax.random.key(0), 0)[0])))
  params = tiny.params(system.model)
  for a, b in zip(*(jax.tree.leaves(run(phase)(params))
                    for phase in ('dense', 'exits'))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('fields, message', [
    ({'exits.weights': (1., 2., 3.)}, 'exits.weights='),
    ({'exits.weights': (1., -2.)}, 'exits.weights='),
    ({'exits.weights': (0.,)}, 'exits.weights='),
    ({'exits.weights': (float('nan'),)}, 'exits.weights='),
    ({'exits.policy': True}, 'exits.policy=True .*--config.init.workdir='),
    ({'exits.policy': True, 'init.workdir': 'x'},
     "config.phases=.*'exits'"),
    ({'phases': ('policy', 'exits'), 'init.workdir': 'x'},
     "config.phases=.*'exits'"),
    ({'phases': ('static', 'exits'), 'init.workdir': 'x',
      'static.policy': 'mask', 'static.keep': '10'},
     "config.phases=.*'exits'"),
    ({'phases': ('classifier_wise',), 'init.workdir': 'x',
      'exits.weights': (1.,), 'classifier_wise.batch_size': 8},
     '.*model.exits.*--config.model.exits='),
    ({'exits.distill': 1.5}, 'exits.distill='),
    ({'exits.temperature': 0.}, 'exits.temperature='),
    ({'exits.rule': 'agreement'}, "exits.rule=.*'patience'"),
    ({'exits.rule': 'entrpy'}, "exits.rule=.*'entropy'"),
    ({'model.layers': (1, 1, 1)}, 'layers=.*factors=')])
def test_what_does_not_fit_is_refused(dataset, tmp_path, fields, message):
  with pytest.raises(ValueError, match=f'^({message})'):
    loop.Trainer(_config(**fields), str(tmp_path), dataset)


def _weights(path, model):
  """Parameters of a model, and fields of a config that begins with them."""
  params = tiny.params(model)
  weights.save(path, model, params, preprocessing=weights.Preprocessing(
      (0.5,), (0.5,), 'bicubic', 1.))
  return params, {'init.weights': str(path)}


def test_a_run_begins_with_a_file_of_its_model(run, dataset, tmp_path):
  params, fields = _weights(
      tmp_path / 'own.safetensors', run[1].system.model)
  trainer = loop.Trainer(_config(**fields), str(tmp_path), dataset)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    state, *_ = trainer._restore(ckpts)
  assert states.same(jax.device_get(state.params), params)


def test_parameters_of_another_kind_of_model(run, dataset, tmp_path):
  _, fields = _weights(tmp_path / 'vit.safetensors', tiny.model())
  with pytest.raises(ValueError, match='vit.safetensors'):
    loop.Trainer(_config(**fields), str(tmp_path), dataset)
  policies = tiny.get_config()
  policies.phases = ('policy',)
  policies.init.workdir, policies.seed = run[0], run[1].config.seed
  with pytest.raises(ValueError, match='backbone/'):
    loop.Trainer(policies, str(tmp_path), dataset).train()
