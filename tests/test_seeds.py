"""The table of several seeds, and the reports that it does not average."""

import json
import pathlib

import pytest
import tiny


@pytest.fixture(scope='module')
def seeds():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
    import seeds
  return seeds


@pytest.fixture
def run(tmp_path):
  """Writes the report of a run with fields changed; returns its directory."""
  def write(accuracy, **fields):
    row = dict(accuracy=accuracy, macs_ratio=0.5, encoder_macs_ratio=0.4)
    directory = tmp_path / f'{accuracy}'
    directory.mkdir()
    (directory / 'report.json').write_text(json.dumps(dict(
        dict(seed=0, budget=0.5, finished=True, dense=row, adaptive=row,
             one_set_of_weights={}), **fields)))
    return str(directory)
  return write


def test_mean_and_spread(seeds, run, capsys):
  seeds.main([run(0.8), run(0.9, seed=1)])
  assert '| dense | 85.00 ± 7.07 | 0.500 ± 0.000 |' in capsys.readouterr().out


@pytest.mark.parametrize('fields, field', [
    ({}, r'seeds \[0, 0\]'),
    (dict(seed=1, budget=0.4), r'budgets of \[0.4, 0.5\].*--mac_target'),
    (dict(seed=1, finished=False), '0.9 .*finished'),
])
def test_reports_of_unlike_runs_are_not_averaged(seeds, run, fields, field):
  with pytest.raises(SystemExit, match=field):
    seeds.main([run(0.8), run(0.9, **fields)])


def test_a_report_without_an_adaptive_row_is_refused(seeds, tmp_path):
  report = dict(seed=0, budget=0.5, finished=True, dense={}, exits=[])
  (tmp_path / 'report.json').write_text(json.dumps(report))
  with pytest.raises(SystemExit, match="report.json.*'adaptive'"):
    seeds.main([str(tmp_path)])


@pytest.mark.parametrize('arguments', [[], ['--help']])
def test_how_to_call_it(seeds, arguments):
  with pytest.raises(SystemExit, match='python benchmarks/seeds.py runs/'):
    seeds.main(arguments)


def test_a_report_of_other_attributes_is_refused(seeds, tmp_path):
  report = dict(seed=0, adaptive={}, attributes=dict(merge=8))
  (tmp_path / 'report.json').write_text(json.dumps(report))
  with pytest.raises(SystemExit, match="report.json.*'merge': 8.*--model"):
    seeds.main([str(tmp_path)])
