"""The benchmark of the execution modes: what it runs, and what it refuses."""

import pathlib

from absl import flags
from absl.testing import flagsaver
import jax
import numpy as np
import pytest
import tiny

from adavit_jax import cost
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.train import restore

_BENCHMARKS = str(pathlib.Path(__file__).parents[1] / 'benchmarks')


@pytest.fixture(scope='module')
def execution():
  """The module, as a script that lies beside it sees it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(_BENCHMARKS)
    import execution
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return execution


@pytest.fixture
def quick(execution, monkeypatch):
  """One call a turn, one timed round, and no other library's rows."""
  monkeypatch.setattr(execution.timing, '_WARM_UP', 0.)
  monkeypatch.setattr(execution.timing, '_TURN', 0.)
  monkeypatch.setattr(execution.timm_rows, 'rows', lambda *args: ())
  with flagsaver.flagsaver(repeats=1):
    yield execution


def test_rows_of_a_model_in_every_mode(quick):
  model = tiny.model()
  third = 1 / 3  # of L = 3 layers: one MSA and one MLP run
  rows = list(quick.model_rows(
      'tiny', model, tiny.params(model), 2, [1., third]))
  assert [(r['mode'], r['keep']) for r in rows] == [
      ('dense', 1), ('cond', 1), ('compact', 1), ('static', 1),
      ('cond', 0.333), ('compact', 0.333), ('static', 0.333)]
  for row in rows:
    assert (row['model'], row['batch'], row['dtype']) == ('tiny', 2, 'float32')
    assert set(quick.timing.COLUMNS) | {'device', 'dtype', 'jax'} <= set(row)
    assert row['time_ms'] > 0
    np.testing.assert_allclose(
        row['efficiency'], row['mac_ratio'] / row['time_ratio'])

  # By hand: layers that run for all 5 tokens, and for the class token alone.
  spend = cost.vit(model)
  msa, mlp = cost.unread(5, 1, model.width, model.mlp_dim)
  always = spend.stem + spend.msa + spend.mlp + spend.head
  macs = lambda whole_msa, last_msa, whole_mlp, last_mlp: (
      always + whole_msa * spend.msa + last_msa * (spend.msa - msa)
      + whole_mlp * spend.mlp + last_mlp * (spend.mlp - mlp))
  dense = macs(2, 1, 2, 1)
  ratios = [r['mac_ratio'] for r in rows]
  np.testing.assert_allclose(ratios[:4], 1)
  # The draws of the one timed round, and of none before it for `static`.
  for ratio, draw, mode in ((ratios[4], 1, 'cond'), (ratios[6], 0, 'static')):
    keep_msa, keep_mlp = quick._draws(model, 2, third, mode)[draw]
    after = keep_mlp.argmax() >= keep_msa.argmax()
    assert keep_msa.sum() == keep_mlp.sum() == 1
    np.testing.assert_allclose(ratio, macs(0, 1, 1 - after, after) / dense)
  drawn = Actions(*map(
      np.asarray, fixed.uniform(jax.random.key(1), 2, 3, keep=third)))
  want = (spend.adaptive(drawn) - cost.left_out(model, drawn)).mean() / dense
  assert not np.isclose(want, ratios[4])
  np.testing.assert_allclose(ratios[5], want, rtol=1e-6)


def test_one_image_runs_in_cond_and_not_in_compact(quick):
  model = tiny.model()
  with flagsaver.flagsaver(modes=['compact', 'cond']):
    rows = list(quick.model_rows('tiny', model, tiny.params(model), 1, [1.]))
  assert [r['mode'] for r in rows] == ['dense', 'cond']


def _error(execution, monkeypatch, **values):
  """What the script says as it ends before it computes."""
  monkeypatch.setattr(
      execution, '_rows', lambda *args: pytest.fail('it has begun'))
  with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as error:
    execution.main(['execution.py'])
  return str(error.value)


@pytest.mark.parametrize('flag, value, message', [
    ('batches', ['8', 'a'], '--batches=8,a must list batch sizes, 1 or more'),
    ('batches', [], '--batches= must list batch sizes, 1 or more'),
    ('keeps', ['0.5', '1.5'], '--keeps=0.5,1.5 must list numbers in (0, 1]'),
    ('chunks', ['0'], '--chunks=0 must list numbers of images'),
    ('modes', ['masked'], "--modes has ['masked']; known: cond, compact, "
                          'static'),
])
def test_flags_that_list_nothing_to_time_are_refused(
    execution, monkeypatch, flag, value, message):
  assert _error(execution, monkeypatch, **{flag: value}) == f'error: {message}'


def test_a_cascade_that_no_image_leaves_is_not_timed(
    execution, monkeypatch, tmp_path):
  monkeypatch.setattr(
      restore, 'find', lambda workdir: ('last', 1, dict(phase='exits')))
  assert 'has no thresholds yet, so that no image would leave' in _error(
      execution, monkeypatch, workdir=[str(tmp_path)])
  execution.trained.check(tmp_path, threshold=0.5)
  (tmp_path / 'report.json').write_text('{"slack": {"thresholds": [0.5]}}')
  execution.trained.check(tmp_path)


def test_a_model_that_runs_in_stages_is_refused(execution, monkeypatch):
  names = ['vit_digits_patch2_8', 'ravit_cifar_patch4_32']
  message = _error(execution, monkeypatch, models=names)
  assert message.startswith(
      "error: --models has 'ravit_cifar_patch4_32', which runs in stages")


def test_a_run_with_nothing_to_time_is_refused(execution, monkeypatch):
  phases = {'a': 'joint', 'b': 'dense'}
  monkeypatch.setattr(
      execution.trained.restore, 'find',
      lambda workdir: ('phases', 6, {'phase': phases[workdir]}))
  message = _error(execution, monkeypatch, workdir=['a', 'b'])
  assert message.startswith("error: 'b' has only its dense phase")
