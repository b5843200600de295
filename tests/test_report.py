"""The report of the smallest run, end to end."""

import contextlib
import dataclasses
import io
import json
import pathlib

import adavit_jax
from adavit_jax import cost
from adavit_jax import data
from adavit_jax import report
from adavit_jax.models.actions import Actions
from adavit_jax.report import baselines
from adavit_jax.report import compare
from adavit_jax.report import masks
from adavit_jax.train import evaluate
from adavit_jax.train import loop
from adavit_jax.train import restore
from adavit_jax.train import system as system_lib
import numpy as np
import pytest
import states
from states import two_devices  # a fixture
import tiny

L = 3


def _outputs(keep, prediction, loss):
  keep = np.asarray(keep, np.float32)
  prediction = np.asarray(prediction)
  return evaluate.Outputs(prediction, prediction == 0, np.asarray(loss), keep)


def test_adaptive_row_by_hand():
  spend = cost.Cost(stem=10, msa=4, mlp=2, head=6, policy=1, num_fixed=1,
                    num_adaptive=2)  # dense: 10 + 3 * 6 + 6 = 34
  keep = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
  out = _outputs(keep, [0, 1, 0], [.1, .2, .3])
  dense = _outputs(np.ones((3, 4)), [0, 0, 0], [.9, .1, .5])
  row = compare.adaptive_row(out, dense, spend, {'hard': [True, False, False]})
  assert row['accuracy'] == pytest.approx(2 / 3)
  macs = [10 + 6 + 12 + 6 + 1, 10 + 6 + 6 + 1, 10 + 6 + 4 + 6 + 1]
  assert row['macs'] == pytest.approx(np.mean(macs))
  assert row['macs_ratio'] == pytest.approx(np.mean(macs) / 34)
  assert row['encoder_macs_ratio'] == pytest.approx(
      (np.mean(macs) - 16) / 18)
  assert row['unique_actions'] == 3
  assert row['kept_msa_mean'] == pytest.approx(1)
  assert row['difficulty_correlation'] == pytest.approx(1)
  assert row['agreement'] == pytest.approx(2 / 3)
  assert (row['kept_easy'], row['kept_hard']) == (0.5, 4)


def test_random_actions_meet_the_budget_in_the_mean():
  spend = cost.Cost(10, 4, 2, 6, 0, 1, 2)
  keep = compare.budget_keep(spend, 0.8)
  expected = 10 + 6 + 6 + keep * 2 * (4 + 2)
  assert expected / 34 == pytest.approx(0.8)


def test_interpolation_reads_between_two_masks():
  rows = [dict(macs_ratio=1., accuracy=.9), dict(macs_ratio=.5, accuracy=.7)]
  assert compare.interpolate(rows, .6)['accuracy'] == pytest.approx(.74)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('run'))
  config = tiny.get_config()
  dataset = tiny.dataset()
  assert loop.Trainer(config, workdir, dataset).train() is not None
  return workdir, dataset


@pytest.fixture
def tiny_data(run, monkeypatch):
  monkeypatch.setattr('adavit_jax.data.load', lambda *a, **k: run[1])


@pytest.fixture(scope='module')
def reported(run):
  """(the report of the run with its static baselines, what it printed)."""
  printed = io.StringIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('adavit_jax.data.load', lambda *a, **k: run[1])
    with contextlib.redirect_stdout(printed):
      result = report.evaluate(run[0], static=True)
  return result, printed.getvalue()


def test_report_has_what_it_promises(run, reported):
  workdir, dataset = run
  result, printed = reported
  assert json.loads(json.dumps(result)) == result
  for name in ('dense', 'adaptive', 'static', 'random', 'shuffled'):
    assert {'accuracy', 'macs_ratio'} <= set(result[name])
  assert {'unique_actions', 'kept_msa_mean', 'kept_mlp_mean', 'kept_std',
          'difficulty_correlation'} <= set(result['adaptive'])
  assert result['dense']['macs_ratio'] == 1
  assert result['static']['macs_ratio'] >= result['adaptive'][
      'macs_ratio'] - 1e-6
  # On 16 held-out images there may be no threshold that comes closer.
  assert result['adaptive_at_static']['macs_ratio'] <= result['static'][
      'macs_ratio'] + 0.1
  one = result['one_set_of_weights']
  macs = [row['macs_ratio'] for row in one['frontier']]
  assert macs == sorted(macs, reverse=True)
  assert macs[0] >= one['static']['macs_ratio'] >= macs[-1]
  assert result['num_test'] == len(dataset.test)
  steps = tiny.STEPS * len(tiny.PHASES)
  assert (result['phase'], result['step'], result['best']) == (
      'joint', steps, False)
  assert result['finished']
  for picture in ('keep_rate', 'accuracy_macs', 'easy_hard'):
    with open(f'{workdir}/{picture}.png', 'rb') as f:
      assert f.read(8) == b'\x89PNG\r\n\x1a\n'
  assert 'distinct action vectors' in printed


def test_data_of_other_classes_has_no_report(run, monkeypatch):
  swapped = dataclasses.replace(run[1], class_names=('1', '0', '2', '3'))
  monkeypatch.setattr('adavit_jax.data.load', lambda *a, **k: swapped)
  with pytest.raises(ValueError, match="class 0 is '1' in this data and was"):
    report.evaluate(run[0], static=False)


@pytest.mark.parametrize('phases, phase', [
    (tiny.PHASES, 'policy'), (('joint',), 'joint')])
def test_static_masks_are_of_the_vit_that_the_joint_phase_began_with(
    run, tiny_data, phases, phase):
  """A joint phase may go on from another run's joint phase."""
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  trainer.config.phases = phases
  trainer.config.init.workdir = workdir
  got = baselines.Report(trainer, workdir)._untuned
  state = restore.state(trainer.system, trainer.mesh, workdir, phase=phase)
  assert states.same(got, system_lib.final_params(state)['vit'])
  assert states.same(got, state.teacher) == (phase == 'policy')


def test_a_run_without_a_policy_has_no_report(run, reported, tiny_data):
  """Every static baseline is a run of its own."""
  static, *_ = pathlib.Path(run[0], 'static').iterdir()
  with pytest.raises(ValueError, match="ends with the phase 'static'"):
    report.evaluate(str(static))


def test_a_run_that_continues_another_has_a_report(run, tiny_data, tmp_path):
  config = tiny.get_config()
  config.phases = ('joint',)
  config.init.workdir, config.init.phase = run[0], 'policy'
  loop.Trainer(config, str(tmp_path), run[1]).train()
  result = report.evaluate(str(tmp_path), threshold=0.5, static=False)
  assert result['adaptive']['threshold'] == 0.5
  assert result['one_set_of_weights'] == {}


@pytest.mark.parametrize('phases, begins', [
    (tiny.PHASES, ('', 'policy')),
    (('warm_start', 'joint'), ('', 'warm_start')),
    (('joint',), ('other', 'dense'))])
def test_static_baselines_begin_from_the_dense_vit(
    run, tiny_data, monkeypatch, phases, begins):
  """The run itself has it where a phase came before the joint one."""
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  trainer.config.phases = phases
  trainer.config.init.update(workdir='other', phase='dense')
  trainer.config.joint.learning_rate = 0.25
  made = []

  class Stopped:

    def __init__(self, config, directory, data):
      made.append((config, directory, data))

    def train(self):
      return None

  monkeypatch.setattr(loop, 'Trainer', Stopped)
  keep = np.array([1, 0, 1, 0, 1, 1], np.float32)
  assert masks.finetuned(
      trainer, workdir, Actions.from_keep(keep)) is None
  (config, directory, got), = made
  assert (config.init.workdir, config.init.phase) == (
      begins[0] or workdir, begins[1])
  assert (config.phases, config.static.keep) == (('static',), '101011')
  assert config.static.learning_rate == 0.25
  assert directory == f'{workdir}/static/101011' and got is dataset


@pytest.mark.parametrize('phase', ['dense', ''])
def test_a_run_loads_as_a_classifier(run, tiny_data, phase):
  """Newest: what the evaluator finds. Dense: every layer of the teacher."""
  workdir, dataset = run
  clf = adavit_jax.load(workdir, phase=phase)
  images = dataset.test.images(np.arange(len(dataset.test)))
  got = clf(images)
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  state = restore.state(trainer.system, trainer.mesh, workdir, phase=phase)
  params = system_lib.final_params(state)
  if phase == 'dense':
    want = trainer.evaluator.dense(params['vit'], dataset.test)
  else:
    want = trainer.evaluator.adaptive(
        params, state.stats, dataset.test, threshold=clf.threshold)
  np.testing.assert_array_equal(got.labels, want.prediction)
  np.testing.assert_array_equal(got.actions.keep, want.keep)
  assert clf.class_names == dataset.class_names


def test_without_held_out_images_what_needs_them_is_left_out(run, tiny_data):
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  trainer.dataset = dataclasses.replace(dataset, holdout=data.ArraySplit(
      np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int)))
  maker = baselines.Report(trainer, workdir)
  assert maker.one_set_of_weights() == {}
  assert list(maker.static_masks(0.5)) == ['static_last']
  with pytest.raises(ValueError, match='no images were held out'):
    maker.final()


def test_the_calibrated_threshold_meets_the_budget_on_held_out_images(
    run, tiny_data):
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  maker = baselines.Report(trainer, workdir)
  state = restore.state(trainer.system, trainer.mesh, workdir)
  params = system_lib.final_params(state)
  def spent(threshold):
    out = trainer.evaluator.adaptive(
        params, state.stats, dataset.holdout, threshold=threshold)
    return trainer.system.cost.ratio(out.actions).mean()
  target = (spent(0.01) + spent(0.99)) / 2
  assert spent(0.99) < target < spent(0.01)
  threshold = maker.calibrate(state, target)
  assert spent(threshold) <= target
  # The bisection ends 12 / 2^10 logits above a threshold that spends more.
  logit = np.log(threshold / (1 - threshold))
  assert spent(1 / (1 + np.exp(0.02 - logit))) > target


def test_one_set_of_weights_is_compared_at_the_same_macs(run, tiny_data):
  """The static curve through three masks, all rows on the test images."""
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  maker = baselines.Report(trainer, workdir)
  cost = trainer.system.plain_cost
  keep = np.array([[1] * 6, [1, 0, 1, 1, 1, 0], [0] * 6])
  maker._masks = masks.Known(
      keep, cost.ratio(Actions.from_keep(keep)), np.array([.9, .8, .1]),
      np.zeros(3))
  one = maker.one_set_of_weights()
  vit = restore.state(
      trainer.system, trainer.mesh, workdir, phase='policy').params['vit']
  rows = [compare.row(trainer.evaluator.given(vit, dataset.test, k), cost)
          for k in keep]
  assert one['frontier'] == rows
  ratios = [row['macs_ratio'] for row in rows]
  ratio = one['adaptive']['macs_ratio']
  assert ratios[2] + .1 < ratio < ratios[0] - .1
  assert one['static'] == pytest.approx(compare.interpolate(rows, ratio))
  assert one['static']['macs_ratio'] == pytest.approx(ratio)
  assert one['shuffled']['macs_ratio'] == pytest.approx(ratio)
  # Random actions meet the budget in the mean only.
  assert one['random']['macs_ratio'] == pytest.approx(ratio, abs=.05)
