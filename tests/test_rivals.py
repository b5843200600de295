"""Trained runs side by side: accuracy, MACs and time."""

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
  for name in ('_WARM_UP', '_TURN'):
    monkeypatch.setattr(rivals.timing, name, 0.)
  result, _ = reported
  monkeypatch.setattr(rivals.reports, 'read', lambda workdir: result)
  rows = rivals.measure([
      rivals.parse(text.replace('DIR', run[0])) for text in (
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
    rivals.measure([rivals.parse(f'a={run[0]},row=slack')], [1], 1)
  for wrong in ('lost=x', 'row=slack,lost=0.01'):
    with pytest.raises(ValueError, match='lost is a share'):
      rivals.parse(f'a=b,{wrong}')
  with pytest.raises(ValueError, match='LABEL=DIR'):
    rivals.parse(run[0])
