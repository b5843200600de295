"""The picture of several runs with exits, and what it refuses."""

import json
import pathlib

import pytest
import tiny

_ROW = dict(macs_ratio=0.5, accuracy=0.9)


@pytest.fixture(scope='module')
def curves():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
    import curves
  return curves


def _run(directory, **report):
  """LABEL=DIR of a directory with a report."""
  directory.mkdir()
  (directory / 'report.json').write_text(json.dumps(report))
  return f'{directory.name}={directory}'


def test_runs_are_drawn(curves, tmp_path):
  runs = [_run(tmp_path / name, exits=[_ROW], curve=[_ROW]) for name in 'ab']
  curves.main(tmp_path / 'c.png', *runs)
  assert (tmp_path / 'c.png').read_bytes().startswith(b'\x89PNG')


def test_what_cannot_be_drawn_is_said(curves, tmp_path):
  good = _run(tmp_path / 'good', exits=[_ROW], curve=[_ROW])
  policy = _run(tmp_path / 'policy', adaptive=_ROW)
  row = dict(macs_ratio=0.5, mae=3.)
  number = _run(tmp_path / 'number', exits=[row], curve=[row])
  for runs, message in (
      ([str(tmp_path / 'good')], "good'.*LABEL=DIR"),
      ([good, f'b={tmp_path}'], 'report.json.*eval.py --workdir='),
      ([good, policy], 'report.json.*curve'),
      ([good, number], 'classification.*regression')):
    with pytest.raises(SystemExit, match=message):
      curves.main(tmp_path / 'c.png', *runs)
  assert not (tmp_path / 'c.png').exists()
