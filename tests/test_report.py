"""The report of the smallest run, end to end."""

import contextlib
import copy
import dataclasses
import io
import json
import pathlib
import shutil
import types

import adavit_jax
from adavit_jax import data
from adavit_jax import report
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.promise import promises
from adavit_jax.report import page
from adavit_jax.report import policy_report
from adavit_jax.report import promised_row
from adavit_jax.report import report_options
from adavit_jax.report import static_masks
from adavit_jax.report import rows as rows_lib
from adavit_jax.report import run_report
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib
import jax
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import run  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
import tiny


@pytest.fixture
def tiny_data(run, monkeypatch):
  monkeypatch.setattr('adavit_jax.data.load', lambda *a, **k: run[1])


@pytest.fixture
def opens(monkeypatch):
  """Work directories whose checkpoints are opened, in their order."""
  found, make = [], checkpoints.Checkpoints
  monkeypatch.setattr(checkpoints, 'Checkpoints', lambda workdir, **kwargs: (
      found.append(workdir) or make(workdir, **kwargs)))
  return found


@pytest.fixture
def opened(run):
  """(the opened run, its newest checkpoint)."""
  with saved_run.Run(run[0]) as found:
    yield found, found.find()


def _make(trainer, opened):
  run, saved = opened
  state = run.state(saved, trainer.system, trainer.mesh)
  return policy_report.Report(trainer, run, state, 0.55)


@pytest.fixture
def maker(run, opened):
  return _make(loop.Trainer(tiny.get_config(), *run), opened)


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
  assert {kind: len(rates) for kind, rates in
          result['adaptive']['keep_rate'].items()} == dict(msa=3, mlp=3)
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


@pytest.mark.parametrize('changed, given, field', [
    (lambda data: dict(class_names=('1', '0', '2', '3')), {}, "^class 0.*'1'"),
    (lambda data: dict(holdout=data.test, test=data.holdout), {},
     '^the images'),
    (lambda data: {}, dict(threshold=1.5), '^--threshold=1.5'),
    (lambda data: {}, dict(rule='entropy'), '^--rule=entropy'),
    (lambda data: {}, dict(ceiling=True, actions='5'), '^--ceiling=True')])
def test_what_has_no_report(run, monkeypatch, changed, given, field):
  dataset = dataclasses.replace(run[1], **changed(run[1]))
  folders = []

  def load(config, **_):
    folders.append(config.data_dir)
    return dataset

  monkeypatch.setattr('adavit_jax.data.load', load)
  with pytest.raises(ValueError, match=field):
    report.evaluate(run[0], static=False, data_dir='moved', **given)
  assert folders == ['moved']


def test_what_a_policy_needs_is_checked_before_it_runs(
    run, tiny_data, monkeypatch):
  monkeypatch.setattr(run_report, '_with_policy', lambda *args: 'runs')
  for given in (dict(decide='value'), dict(ceiling=True)):
    assert report.evaluate(run[0], static=False, **given) == 'runs'
  monkeypatch.setattr(
      report_options.value_lib, 'is_fitted', lambda value: False)
  for given in (dict(decide='value'), dict(ceiling=True)):
    with pytest.raises(ValueError, match='--ceiling'):
      report.evaluate(run[0], static=False, **given)


def test_a_mistyped_workdir_is_not_made(tmp_path):
  with pytest.raises(ValueError, match='--workdir'):
    report.evaluate(str(tmp_path / 'run'))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('phases, phase', [
    (tiny.PHASES, 'policy'), (('joint',), 'joint')])
def test_static_masks_are_of_the_model_that_the_joint_phase_began_with(
    run, opened, tiny_data, phases, phase):
  """A joint phase may go on from another run's joint phase."""
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  trainer.config.phases = phases
  trainer.config.init.workdir = workdir
  got = _make(trainer, opened)._untuned
  found, _ = opened
  state = found.state(found.find(phase=phase), trainer.system, trainer.mesh)
  assert states.same(got, state_lib.final_params(state))
  assert states.same(state_lib.model_params(got), state.teacher) == (
      phase == 'policy')


@pytest.mark.nightly
def test_a_run_without_a_policy_has_a_row_of_what_it_reaches(
    run, reported, tiny_data, tmp_path, capsys):
  """Every static baseline is a run of its own."""
  want, _ = reported
  static = pathlib.Path(run[0], 'static', want['static']['keep'])
  result = report.evaluate(str(static))
  assert dict(result['static'], keep=static.name) == want['static']
  assert result['dense'] == want['dense']
  assert capsys.readouterr().out.count('static  ') == 1
  for given in ('threshold', 'mac_target'):
    with pytest.raises(ValueError, match=f"^--{given}=0.5.*'static'"):
      report.evaluate(str(static), **{given: 0.5})
  config = tiny.get_config()
  config.phases, config.dense.steps, config.model.merge = ('dense',), 1, 0
  trainer = loop.Trainer(config, str(tmp_path), run[1])
  params = state_lib.final_params(trainer.train())
  result = report.evaluate(str(tmp_path))
  assert result['dense'] == rows_lib.row(
      trainer.evaluator.dense(params, run[1].test), trainer.system.plain_cost)
  assert 'static' not in result
  merged = report.evaluate(str(tmp_path), attributes=dict(merge=1))
  assert merged['attributes'] == dict(merge=1)
  assert merged['dense']['loss'] != result['dense']['loss']
  for field, value in (('depth', 2), ('merge', 1.5), ('mlp_ratio', 'a')):
    with pytest.raises(ValueError, match=f'^{field}='):
      report.evaluate(str(tmp_path), attributes={field: value})


@pytest.mark.nightly
def test_layers_that_the_user_chooses(run, reported, tiny_data, maker):
  """Table 1, a mask, and a stochastic policy that draws as a classifier's."""
  workdir, dataset = run
  params, evaluator = maker._params, maker.trainer.evaluator
  row = lambda actions: rows_lib.row(
      evaluator.with_actions(params, dataset.test, actions),
      maker.trainer.system.plain_cost)
  drawn = Actions(*map(np.asarray, fixed.stochastic_rows(
      jax.random.key(0), np.arange(len(dataset.test)), (3, 3), final=0.5)))
  for text, actions in (('4', fixed.table_1(4, (3, 3))),
                        ('011101', fixed.parse('011101', (3, 3))),
                        ('stochastic:0.5', drawn)):
    result = report.evaluate(workdir, actions=text)
    assert result['given'] == row(actions)
    assert (result['actions'], result['dense']) == (
        text, reported[0]['dense'])
  for text in ('1', '0110', 'stochastic:2', 'stochastic'):
    with pytest.raises(ValueError, match='drop|keep=|actions='):
      report.evaluate(workdir, actions=text)
  with pytest.raises(ValueError, match='^--threshold=0.5.*--actions=4'):
    report.evaluate(workdir, actions='4', threshold=0.5)


def test_a_best_checkpoint_that_is_replaced_meanwhile(
    run, tiny_data, tmp_path, monkeypatch):
  """The report names the step that it measures."""
  shutil.copytree(f'{run[0]}/checkpoints', tmp_path / 'checkpoints')
  new, restore = [], saved_run.Run.state

  class Measured(Exception):
    pass

  def replaced(self, saved, system, mesh):
    if not new:
      new.append(states.replace(tmp_path, 'best'))
    return restore(self, saved, system, mesh)

  def measure(trainer, run, state, metadata, options):
    del trainer, run, options
    raise Measured(int(state.step), metadata['step'])

  monkeypatch.setattr(saved_run.Run, 'state', replaced)
  monkeypatch.setattr(run_report, '_with_policy', measure)
  made = []
  trainer = loop.Trainer
  monkeypatch.setattr(loop, 'Trainer', lambda *args, **kwargs: (
      made.append(1) or trainer(*args, **kwargs)))
  with pytest.raises(Measured) as measured:
    report.evaluate(str(tmp_path), best=True, static=False)
  step, named = measured.value.args
  # The directory was renamed: the array in it is still the old step.
  assert [named] == new and step == named - 1
  assert len(made) == 1  # only the reading is tried again


@pytest.mark.nightly
def test_a_run_is_evaluated_on_other_devices(run, reported, monkeypatch):
  """Three do not divide the batches of 8 and 16."""
  make_mesh = mesh_lib.make_mesh
  monkeypatch.setattr(mesh_lib, 'make_mesh', lambda: make_mesh(3))
  monkeypatch.setattr('adavit_jax.data.load', lambda *a, **k: run[1])
  with pytest.raises(ValueError, match='joint.batch_size=8.* 3 .*--nostatic'):
    report.evaluate(run[0])
  result = report.evaluate(
      run[0], threshold=reported[0]['adaptive']['threshold'], static=False)
  for name in ('dense', 'adaptive'):
    for key in ('loss', 'macs_ratio'):
      np.testing.assert_allclose(
          result[name][key], reported[0][name][key], rtol=1e-5)


@pytest.mark.nightly
def test_another_budget_than_the_configs(
    run, reported, tiny_data, opens, monkeypatch):
  want, _ = reported
  given, tuned = [], static_masks.finetuned
  monkeypatch.setattr(
      policy_report.Report, 'static_masks', lambda *args: dict(static=given[0]))
  def again(trainer, workdir, actions):
    assert trainer.config.mac_target == 0.55
    return tuned(trainer, workdir, actions)
  monkeypatch.setattr(static_masks, 'finetuned', again)
  given.append(Actions.from_keep(np.array(
      [*map(float, want['static']['keep'])]), (3, 3)))
  result = report.evaluate(run[0], mac_target=0.45)
  assert result['static'] == want['static']  # a run that is there already
  assert opens.count(run[0]) == 1
  assert (result['budget'], want['budget']) == (0.45, 0.55)
  assert result['adaptive']['threshold'] > want['adaptive']['threshold']
  with pytest.raises(
      ValueError, match='^--mac_target=0.45.*--threshold=0.5'):
    report.evaluate(run[0], mac_target=0.45, threshold=0.5)


@pytest.mark.nightly
def test_accuracy_is_drawn_against_time(
    run, reported, tiny_data, monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
  import accuracy_time
  for name in ('_WARM_UP', '_TURN'):
    monkeypatch.setattr(accuracy_time.timing, name, 0.)
  report_json, _ = reported
  rows = accuracy_time.measure(report_json, run[0], [2], 1)
  sweep = report_json['sweep']
  num_static = len(list(pathlib.Path(run[0], 'static').iterdir()))
  assert [row['mode'] for row in rows] == [
      'dense', *(f'threshold {x["threshold"]:.4f}' for x in sweep),
      *['static'] * num_static]
  assert [row['accuracy'] for row in rows[:len(sweep) + 1]] == [
      x['accuracy'] for x in (report_json['dense'], *sweep)]
  kept = [row['keep'] for row in rows[1:len(sweep) + 1]]
  assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1]
  accuracy_time.draw(report_json, rows).savefig(tmp_path / 'a.png')
  with pytest.raises(ValueError, match='report.json'):
    accuracy_time.read(str(tmp_path))


def test_a_static_run_loads_with_its_mask(run, reported):
  for static in pathlib.Path(run[0], 'static').iterdir():
    assert '0' in static.name
    clf = adavit_jax.load(str(static))
    np.testing.assert_array_equal(clf.actions.keep, [*map(int, static.name)])


def test_the_model_before_the_joint_phase_is_that_of_the_time(
    run, opened, tiny_data, tmp_path):
  """The run in init.workdir may go on, or go away."""
  found, saved = opened
  info = copy.deepcopy(saved.info)
  info['began_from'], info['config']['init']['workdir'] = 'policy', run[0]
  saved = saved._replace(info=info)
  options = report_options.Options(
      *[None] * len(report_options.Options._fields))._replace(attributes={})
  config = run_report._trainer(found, saved, run[0], options).config
  assert config.init.phase == 'policy'
  config.phases, config.init.workdir = ('joint',), run[0]
  report_options._check_origin(config, run[0])
  config.init.workdir = str(tmp_path / 'gone')
  with pytest.raises(ValueError, match='init.workdir=.*gone.*--nostatic'):
    report_options._check_origin(config, str(tmp_path))
  (tmp_path / 'static').mkdir()
  report_options._check_origin(config, str(tmp_path))
  for workdir in ('', str(tmp_path / 'gone')):
    info['config']['init']['workdir'] = workdir
    config = run_report._trainer(found, saved, run[0], options).config
    assert config.init.phase == ''


@pytest.mark.nightly
def test_a_run_that_continues_another_has_a_report(
    run, tiny_data, tmp_path, opens):
  config = tiny.get_config()
  config.phases = ('joint',)
  config.init.workdir, config.init.phase = run[0], 'policy'
  loop.Trainer(config, str(tmp_path), run[1]).train()
  opens.clear()
  result = report.evaluate(str(tmp_path), threshold=0.5, static=False)
  assert opens == [str(tmp_path)]
  assert result['adaptive']['threshold'] == 0.5
  assert result['one_set_of_weights'] == {}


@pytest.mark.parametrize('phases, begins', [
    (tiny.PHASES, ('', 'policy')),
    (('warm_start', 'joint'), ('', 'warm_start')),
    (('joint',), ('other', 'dense'))])
def test_static_baselines_begin_from_the_dense_model(
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
  actions = Actions(np.float32([1, 0, 1]), np.float32([0, 1, 1]))
  assert static_masks.finetuned(trainer, workdir, actions) is None
  (config, directory, got), = made
  assert (config.init.workdir, config.init.phase) == (
      begins[0] or workdir, begins[1])
  assert (config.phases, config.static.keep) == (('static',), '101011')
  assert config.static.learning_rate == 0.25
  assert directory == f'{workdir}/static/101011' and got is dataset


def test_without_held_out_images_what_needs_them_is_left_out(
    run, opened, tiny_data):
  workdir, dataset = run
  trainer = loop.Trainer(tiny.get_config(), workdir, dataset)
  trainer.dataset = dataclasses.replace(dataset, holdout=data.ArraySplit(
      np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int)))
  maker = _make(trainer, opened)
  assert maker.one_set_of_weights() == {}
  assert list(maker.static_masks(0.5)) == ['static_last']
  options = types.SimpleNamespace(ceiling=False, threshold=None)
  with pytest.raises(ValueError, match='--config.data.holdout'):
    report_options._check_policy(trainer, maker._state, workdir, options)


def test_a_static_mask_pays_for_no_policy(maker, monkeypatch):
  """So a budget just above its own MACs is met by the next one up alone."""
  monkeypatch.setattr(maker, '_data', types.SimpleNamespace(holdout=()))
  last = static_masks.last_k((3, 3))
  for i, ratio in enumerate(maker.trainer.system.plain_cost.ratio(last)):
    for budget, want in ((ratio, i), (ratio + 1e-3, max(i - 1, 0))):
      found, = maker.static_masks(budget).values()
      np.testing.assert_array_equal(found.keep, last.keep[want])


def test_the_calibrated_threshold_meets_the_budget_on_held_out_images(
    run, opened, maker):
  _, dataset = run
  trainer, (found, saved) = maker.trainer, opened
  params = state_lib.final_params(
      found.state(saved, trainer.system, trainer.mesh))
  def spent(threshold):
    out = trainer.evaluator.adaptive(
        params, dataset.holdout, knob=threshold)
    return trainer.system.cost.ratio(out.actions).mean()
  target = (spent(0.01) + spent(0.99)) / 2
  assert spent(0.99) < target < spent(0.01)
  threshold = maker.calibrate(params, target)
  assert spent(threshold) <= target
  # The bisection ends 12 / 2^10 logits above a threshold that spends more.
  logit = np.log(threshold / (1 - threshold))
  assert spent(1 / (1 + np.exp(0.02 - logit))) > target


def test_a_threshold_with_a_promise(run, maker, monkeypatch, capsys):
  wanted = promised_row.Wanted(0.4, 0.95)
  # Training has chosen its masks on all held-out images.
  with pytest.raises(ValueError, match='^--risk=0.4: 0 images .*num_search'):
    maker.promised(wanted)
  with pytest.raises(ValueError, match='^--risk=0.4: .*--best'):
    report.evaluate(run[0], best=True, wanted=wanted)
  config, (_, dataset) = maker.trainer.config, run
  monkeypatch.setattr(config, 'num_search', 3)
  row = maker.promised(wanted)
  promise = promises.Promise.from_dict(json.loads(json.dumps(row['promise'])))
  assert promise.num_images == promise.num_tested == 13
  assert promise.risk == 0.4 and promise.kind == 'harm'
  assert row['threshold'] == promise.number
  params = state_lib.final_params(maker._state)
  out = maker.trainer.evaluator.adaptive(
      params, dataset.test, knob=promise.number)
  dense = maker.trainer.evaluator.dense(params, dataset.test)
  assert row['accuracy'] == out.accuracy
  assert row['test_loss'] == (dense.correct & ~out.correct).mean()
  promised_row.show(row, page.Page('', ''))
  assert str(promise) in capsys.readouterr().out


def test_one_set_of_weights_is_compared_at_the_same_macs(run, opened, maker):
  """The static curve through three masks, all rows on the test images."""
  _, dataset = run
  trainer, (found, _) = maker.trainer, opened
  cost = trainer.system.plain_cost
  keep = np.array([[1] * 6, [1, 0, 1, 1, 1, 0], [0] * 6])
  actions = Actions.from_keep(keep, (3, 3))
  maker._masks = static_masks.Known(
      actions, cost.ratio(actions), np.array([.9, .8, .1]), np.zeros(3))
  one = maker.one_set_of_weights()
  params = found.state(
      found.find(phase='policy'), trainer.system, trainer.mesh).params
  rows = [rows_lib.row(trainer.evaluator.with_actions(
      params, dataset.test, Actions.from_keep(k, (3, 3))), cost) for k in keep]
  for got, want in zip(one['frontier'], rows, strict=True):
    assert got == pytest.approx(want)
  assert one['table_1_4_last'] == pytest.approx(rows_lib.row(
      trainer.evaluator.with_actions(
          params, dataset.test, fixed.table_1(4, (3, 3), which='last')), cost))
  ratios = [row['macs_ratio'] for row in rows]
  ratio = one['adaptive']['macs_ratio']
  assert ratios[2] + .1 < ratio < ratios[0] - .1
  assert one['static'] == pytest.approx(rows_lib.interpolate(rows, ratio))
  assert one['static']['macs_ratio'] == pytest.approx(ratio)
  assert one['shuffled']['macs_ratio'] == pytest.approx(ratio)
  # Random actions meet the budget in the mean only.
  assert one['random']['macs_ratio'] == pytest.approx(ratio, abs=.05)


def test_every_draw_is_another_one_and_of_test_images(maker, monkeypatch):
  evaluator, test = maker.trainer.evaluator, maker.trainer.dataset.test
  seen = []
  for name in ('with_actions', 'adaptive'):
    def spy(params, *args, run=getattr(evaluator, name), **kwargs):
      seen.append(args)
      return run(params, *args, **kwargs)
    monkeypatch.setattr(evaluator, name, spy)
  _, out = maker.final(0.5)
  maker.sweep(1)
  maker.at(0.8)
  (final,), *draws, (swept,), (moved,) = seen
  splits, actions = zip(*draws)
  assert all(x is test for x in (final, *splits, swept, moved))
  keeps = [a.keep for a in actions]
  random, shuffled = keeps[::2], keeps[1::2]
  assert len({keep.tobytes() for keep in random}) == 3
  assert len({keep.tobytes() for keep in shuffled}) == 3
  want = out.actions.keep
  for keep in shuffled:
    assert (keep != want).any()
    assert sorted(keep.tolist()) == sorted(want.tolist())


def test_a_sweep_goes_from_many_macs_to_few(maker):
  rows = maker.sweep(3)
  thresholds, macs = ([row[key] for row in rows]
                      for key in ('threshold', 'macs_ratio'))
  assert thresholds == sorted(thresholds)
  assert macs == sorted(macs, reverse=True) and macs[0] > macs[-1]


def test_masks_of_table_1_drop_the_first_or_the_last_layers(maker):
  assert {name: [*map(int, actions.keep)]
          for name, actions in maker._table_1().items()} == {
      'table_1_3_first': [0] * 6, 'table_1_3_last': [0] * 6,
      'table_1_4_first': [0, 1, 1, 0, 0, 1],
      'table_1_4_last': [1, 1, 0, 1, 0, 0]}


def test_a_policy_is_calibrated_to_the_macs_asked_for(maker, monkeypatch):
  monkeypatch.setattr(maker, 'calibrate', lambda params, target: target)
  assert maker.at(0.875)['threshold'] == 0.875
