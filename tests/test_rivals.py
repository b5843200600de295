"""Trained runs side by side: accuracy, MACs and time."""

import types

from adavit_jax.exits import confidence
from adavit_jax.policies import knob
import numpy as np
import pytest
import scripts
from states import one_device  # a fixture
from states import run  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
from test_report import reported  # a fixture
from test_report import tiny_data  # a fixture


@pytest.mark.nightly
def test_rivals_are_measured_as_the_report_has_them(
    run, reported, tiny_data, monkeypatch, tmp_path):
  with scripts.own_flags('benchmarks'):
    import rivals
  rival_runs = rivals.rival_runs
  for name in ('_WARM_UP', '_TURN'):
    monkeypatch.setattr(rivals.timing, name, 0.)
  result, _ = reported
  monkeypatch.setattr(rival_runs.reports, 'read', lambda workdir: result)
  rows = rivals.measure([
      rival_runs.parse(text.replace('DIR', run[0])) for text in (
          'dense=DIR,phase=dense', 'merged=DIR,phase=dense,merge=1',
          'policy=DIR,row=adaptive')], [1, 2], 1)
  dense, merged, policy = rows
  assert (dense['macs_ratio'], dense['time_ratio_1']) == (1, 1)
  assert merged['macs_ratio'] < 1
  for row, want in ((dense, 'dense'), (policy, 'adaptive')):
    assert row['accuracy'] == pytest.approx(result[want]['accuracy'])
  assert policy['macs_ratio'] == pytest.approx(result['adaptive']['macs_ratio'])
  assert rivals.table(rows, [1, 2]).count('\n') == 4
  rivals.draw(rows, [1, 2]).savefig(tmp_path / 'a.png')
  seeds = rivals.over_seeds([
      dict(label='a', accuracy=0.5, quartiles_ms_1=[1., 2.]),
      dict(label='b', accuracy=0.25, quartiles_ms_1=[0., 0.]),
      dict(label='a', accuracy=1., quartiles_ms_1=[3., 4.])])
  assert seeds == [
      dict(label='a', accuracy=0.75, quartiles_ms_1=[2., 3.],
           accuracies=[0.5, 1.]),
      dict(label='b', accuracy=0.25, quartiles_ms_1=[0., 0.],
           accuracies=[0.25])]
  with pytest.raises(ValueError, match='row='):
    rivals.measure([rival_runs.parse(f'a={run[0]},row=slack')], [1], 1)
  for option in ('lost=0.01', 'exit=0'):
    with pytest.raises(ValueError, match=option):
      rivals.measure(
          [rival_runs.parse(f'a={run[0]},phase=dense,{option}')], [1], 1)
  for wrong in ('lost=x', 'lost=-0.1', 'row=slack,lost=0.01', 'exit=0.5'):
    with pytest.raises(ValueError, match=wrong.split(',')[0]):
      rival_runs.parse(f'a=b,{wrong}')
  with pytest.raises(ValueError, match='LABEL=DIR'):
    rival_runs.parse(run[0])


@pytest.fixture
def rival_runs(monkeypatch):
  with scripts.own_flags('benchmarks'):
    import rival_runs
  monkeypatch.setattr(rival_runs, 'images_of', lambda config, name: (
      rival_runs.Images(np.arange(20), np.zeros(20, int))))
  return rival_runs


class _Policy:
  """Classifies ever more of 20 images wrongly: with all layers one of them."""

  def __init__(self, wrong=1):
    self.wrong = wrong
    self.knob, self.actions, self.tried = knob.KNOBS['networks'], None, []
    self.system = types.SimpleNamespace(
        staged=False, model=None, config=types.SimpleNamespace(
            data=types.SimpleNamespace(holdout=0.1)))

  @property
  def threshold(self):
    return self.tried[-1]

  @threshold.setter
  def threshold(self, number):
    self.tried.append(number)

  def __call__(self, images):
    wrong = 1 if self.actions else self.wrong + sum(
        self.threshold >= x for x in (0.3, 0.6, 0.9))
    return types.SimpleNamespace(labels=images < wrong)


@pytest.mark.parametrize('lost, below', [(0., 0.3), (0.05, 0.6), (0.1, 0.9)])
def test_a_policy_drops_what_it_may_lose(rival_runs, monkeypatch, lost, below):
  monkeypatch.setattr(rival_runs.plan, 'num_layers', lambda model: (2, 2))
  clf = _Policy()
  rival_runs._set_lost(clf, lost, 'DIR')
  tried = clf.knob.sweep(rival_runs._NUM_TRIED)
  assert clf.threshold == max(x for x in tried if x < below)
  assert clf.actions is None


def test_where_a_policy_always_loses_more_all_layers_run(
    rival_runs, monkeypatch, capsys):
  monkeypatch.setattr(rival_runs.plan, 'num_layers', lambda model: (2, 2))
  clf = _Policy(wrong=3)
  rival_runs._set_lost(clf, 0.05, 'DIR')
  assert clf.actions.num_kept == 4 and 'DIR' in capsys.readouterr().out


def test_all_images_leave_at_one_exit(rival_runs):
  clf = types.SimpleNamespace(
      system=types.SimpleNamespace(staged=True, exits=(0, 1, 2)))
  for index in range(3):
    rival_runs._set_exit(clf, index, 'DIR')
    found = confidence.choose(np.zeros((3, 5)), clf.thresholds)
    np.testing.assert_array_equal(found, index)
  with pytest.raises(ValueError, match='exit=3'):
    rival_runs._set_exit(clf, 3, 'DIR')


def test_a_directory_without_a_run_is_named(tmp_path):
  with scripts.own_flags('benchmarks'):
    import rivals
  rival = rivals.rival_runs.parse(f'a={tmp_path}')
  with pytest.raises(ValueError, match=str(tmp_path)):
    rivals.measure([rival], [1], 1)
