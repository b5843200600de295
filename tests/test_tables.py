"""Tables of papers: runs that stop, go on and are merged; a sweep."""

import json
import math
import pathlib

from adavit_jax import data
from adavit_jax import models
from adavit_jax.runs import preemption
from adavit_jax.runtime import stopping
import numpy as np
import pytest
import tiny

with pytest.MonkeyPatch.context() as patch:
  patch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
  import paper_tables
  import run_recipes
  import run_results
  import table_figures
  import table_lines
  import table_pages
  import table_runs
  import table_session
  import threshold_sweep

RECIPE = paper_tables.Recipe(
    'tiny', 'tests/tiny_table.py', {'cpu': 'cpu', 'full': 'full'},
    paper_tables.RAVIT_CIFAR10.fields, (0.5, 1.38))
TABLE = paper_tables.Table('Tiny', RECIPE, (
    paper_tables.Row('1-1', 'two branches', 90., 1., 2),
    paper_tables.Row('1-1', 'two branches, entropy 1.38', 80., 0.5, 1, 1.38),
    paper_tables.Row('0-1', 'one branch')), reference='0-1')


@pytest.fixture(scope='module', autouse=True)
def table():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(paper_tables.TABLES, 'tiny', TABLE)
    patch.setitem(paper_tables.TABLES, 'tiny_map', TABLE._replace(layout='map'))
    dataset = tiny.dataset()
    patch.setattr(data, 'load', lambda *_, **__: dataset)
    yield


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """A folder with the results of 0-1, as another session would have written."""
  row = dict(accuracy=0.625, macs=1e4, paper_flops=2e4)
  path = tmp_path_factory.mktemp('results')
  run_results.write(path, dict(
      format=1, recipe='tiny', schedule='cpu', run='0-1', seed=3, exits=[row],
      entropies=[], steps=6, batch_size=8, num_test=300, commit='', jax='0',
      device='another', fields=run_recipes.fields(
          run_recipes.config(RECIPE, 'cpu', '0-1', 3))))
  return path


@pytest.fixture(scope='module')
def workdir(results, tmp_path_factory):
  """Of a table whose first run was stopped after 3 steps, and resumed."""
  path = tmp_path_factory.mktemp('table')
  session = table_session.create(
      'tiny', 'cpu', path, seeds=[3], results=[results])
  with pytest.MonkeyPatch.context() as patch:
    asked = iter(range(1, 100))
    patch.setattr(preemption.GracefulStop, 'should_stop',
                  lambda self: next(asked) == 3)
    with pytest.raises(stopping.Stopped):
      table_session.run(session)
    assert sorted(x.name for x in path.iterdir()) == ['tiny_1-1_cpu_seed3']
    table_session.run(session)
  return path


@pytest.fixture
def untrained(monkeypatch):
  """Nothing may be trained, or drawn, which takes longest."""
  def train(*_):
    raise AssertionError('trained')
  monkeypatch.setattr(table_runs, 'train', train)
  monkeypatch.setattr(table_figures, 'draw', lambda *_: None)


@pytest.mark.nightly
def test_the_table_has_what_was_measured(workdir):
  result = json.loads(
      (workdir / 'results' / 'tiny_1-1_cpu_seed3.json').read_text())
  assert (result['steps'], result['batch_size']) == (6, 8)
  first, last = result['exits']
  found = json.loads((workdir / 'tiny_cpu.json').read_text())
  lines = {line['label']: line for line in found['lines']}
  line = lines['two branches']
  assert line['mean'] == 100 * last['accuracy']
  model = models.create(
      'ravit_cifar_patch4_32', image_size=8, patch_size=2, width=8, num_heads=2,
      mlp_ratio=2., layers=(1, 1), channels=1)
  assert line['flops'] * 1e6 == sum(model.paper_flops())
  one = lines['one branch']
  assert (one['mean'], one['percent']) == (62.5, 100)
  assert line['percent'] == pytest.approx(100 * line['flops'] / one['flops'])
  early = lines['two branches, entropy 1.38']
  at, = (e for e in result['entropies'] if e['entropy'] == 1.38)
  assert early['mean'] == 100 * at['accuracy']
  assert early['flops'] * 1e6 == pytest.approx(np.dot(
      at['shares'], np.cumsum(model.paper_flops())))
  assert first['paper_flops'] == model.paper_flops()[0]
  text = (workdir / 'tiny_cpu.md').read_text()
  assert (f"| two branches | {line['mean']:.2f} | 90.0 | "
          f"{line['flops']:.2f} | 1.00 | {line['percent']:.1f} | 2 |") in text
  assert (workdir / 'tiny_cpu.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.nightly
def test_finished_runs_are_not_made_again(
    workdir, results, untrained, tmp_path):
  text = (workdir / 'tiny_cpu.md').read_text()
  own = workdir / 'results'
  make = lambda path, *folders, **options: table_session.create(
      'tiny', 'cpu', path, seeds=[3], results=map(str, folders), **options)
  assert table_session.run(make(workdir, results)) == text
  # Without a checkpoint here.
  assert table_session.run(make(tmp_path, own, results)) == text
  with pytest.raises(AssertionError, match='trained'):
    table_session.run(make(tmp_path, own))
  part = table_session.run(make(tmp_path, own), train=False)
  assert '| one branch | - |' in part
  assert 'one branch' not in table_session.run(
      make(tmp_path, own, rows=['1-*']))
  with pytest.raises(ValueError, match=r'exits.steps: was 6, is now 7'):
    table_session.run(make(tmp_path, own, overrides={'exits.steps': 7}))
  # A field that changes nothing of what is learned.
  table_session.run(make(tmp_path, own, results, overrides={'log_every': 7}))


@pytest.mark.nightly
def test_an_interrupted_run_is_the_uninterrupted_one(
    workdir, results, tmp_path, monkeypatch):
  monkeypatch.setattr(table_figures, 'draw', lambda *_: None)
  whole = table_session.create('tiny', 'cpu', tmp_path, seeds=[3])
  table_session.run(whole)
  name = 'results/tiny_1-1_cpu_seed3.json'
  assert (tmp_path / name).read_text() == (workdir / name).read_text()
  # A model with one exit.
  result = json.loads(
      (tmp_path / 'results/tiny_0-1_cpu_seed3.json').read_text())
  assert len(result['exits']) == 1 and not result['entropies']
  assert 0 < result['exits'][0]['accuracy'] < 1
  with pytest.raises(ValueError, match='single exit'):
    threshold_sweep.run(table_runs.Evaluated(
        str(tmp_path / 'tiny_0-1_cpu_seed3')), tmp_path)


@pytest.mark.nightly
def test_two_seeds_show_the_mean_and_both(workdir):
  path = workdir / 'results' / 'tiny_1-1_cpu_seed3.json'
  result = json.loads(path.read_text())
  other = json.loads(path.read_text())
  result['exits'][-1]['accuracy'], other['exits'][-1]['accuracy'] = .5, .75
  lines = table_lines.of(TABLE, {('1-1', 0): result, ('1-1', 1): other}, {
      '1-1': [1e6, 2e6], '0-1': [2e6]})
  assert table_pages.accuracy(lines[0]) == '62.50 (50.00, 75.00)'
  assert lines[0]['percent'] == 150 and lines[2]['mean'] is None
  text = table_pages.markdown(TABLE, lines, {('1-1', 0): result}, [0, 1])
  assert 'mean of seeds 0, 1' in text and '6 steps of 8 images' in text


@pytest.mark.nightly
def test_a_map(workdir, results, untrained):
  text = table_session.run(table_session.create(
      'tiny_map', 'cpu', workdir, seeds=[3], results=[results]))
  part = text.split('Accuracy, %:\n\n')[1].split('\n\n')[0]
  head, _, *body = part.split('\n')
  assert head == '|  | 1 |'
  assert body[0] == '| 0 | 62.50 |' and body[1].startswith('| 1 | ')


def test_heads():
  exits = [dict(layer=n, head=head, head_macs=10, macs=100 * n, accuracy=x)
           for n, head, x in ((2, 'mlp', .5), (2, 'vit', .6), (4, 'mlp', .7))]
  table = paper_tables.TABLES['multi_exit_cifar10']
  results = {('heads', seed): dict(
      exits=[*exits, dict(accuracy=.8, macs=1000)]) for seed in (0, 1)}
  lines = table_lines.of(table, results, {})
  assert [(line['label'], line['mean']) for line in lines] == [
      ('mlp, layer 2', 50), ('vit, layer 2', 60), ('mlp, layer 4', 70)]
  text = table_pages.markdown(table, lines, {}, [0, 1])
  assert '| `vit` | 60.00 (60.00, 60.00) |  | 10 |' in text


@pytest.mark.nightly
@pytest.mark.parametrize('change', [
    lambda text: text[:40],
    lambda text: text.replace('"run": "1-1"', '"run": "0-1"'),
    lambda text: text.replace('"format": 1', '"format": 2'),
    lambda text: text.replace('"exits"', '"other"')])
def test_damaged_results_are_named(workdir, tmp_path, change):
  name = 'tiny_1-1_cpu_seed3.json'
  (tmp_path / name).write_text(
      change((workdir / 'results' / name).read_text()))
  with pytest.raises(ValueError, match=name):
    run_results.read([tmp_path], RECIPE, 'cpu', '1-1', 3,
                     run_recipes.config(RECIPE, 'cpu', '1-1', 3))


@pytest.fixture(scope='module')
def evaluated(workdir):
  return table_runs.Evaluated(str(workdir / 'tiny_1-1_cpu_seed3'))


@pytest.mark.nightly
def test_a_sweep_is_that_of_a_loop_over_the_images(evaluated):
  run = evaluated
  num, images = run.correct.shape
  assert num == 2 and images == len(run.outputs.prediction[0])
  of_first = np.quantile(-run.outputs.confidence[0], [0, .25, .5, .75])
  thresholds = [0, *of_first, math.log(4)]
  macs = run.clf.system.cost.stages
  for t, row in zip(thresholds, threshold_sweep.sweep(run, thresholds)):
    right = spent = 0
    left = [0, 0]
    for i in range(images):
      for e in range(num):
        spent += macs[e]
        if e == num - 1 or -float(run.outputs.confidence[e, i]) < t:
          right, left[e] = right + run.correct[e, i], left[e] + 1
          break
    assert row['accuracy'] == pytest.approx(right / images, abs=1e-12)
    assert row['macs'] == pytest.approx(spent / images, rel=1e-12)
    assert row['shares'] == pytest.approx([n / images for n in left])
    assert row['macs_ratio'] == row['macs'] / sum(macs)
  swept = threshold_sweep.sweep(run, thresholds)
  assert swept[0]['shares'] == [0, 1]  # the paper's 'no EE'
  assert [row['shares'][0] for row in swept[1:5]] == [0, .25, .5, .75]


@pytest.mark.nightly
def test_its_files(evaluated, tmp_path):
  text = threshold_sweep.run(evaluated, tmp_path)
  assert (tmp_path / 'tau.md').read_text() == text
  assert len(text.split('\n')) == 24
  assert (tmp_path / 'tau.png').read_bytes().startswith(b'\x89PNG')
  rows = json.loads((tmp_path / 'tau.json').read_text())['rows']
  assert rows[0]['entropy'] == 0
  assert rows[-1]['entropy'] == pytest.approx(math.log(4))
