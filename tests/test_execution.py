"""The benchmark of the execution modes: what it runs, and what it refuses."""

import contextlib
import pathlib
import types

from absl import flags
from absl.testing import flagsaver
from adavit_jax import cost
from adavit_jax import models
from adavit_jax.models import encoder
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.runs import saved_run
import efficient
import jax
import numpy as np
import odd
import pytest
import tiny

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


def test_logits_are_compared_with_those_of_timm(execution, monkeypatch):
  model, said = efficient.levit(), np.random.default_rng(0).normal(size=(2, 4))
  rows = execution.timm_rows

  @contextlib.contextmanager
  def worker(name, classes, directory, dtype, variant):
    np.save(pathlib.Path(directory, f'{variant}.npy'), said)
    yield lambda text='': 'done'

  monkeypatch.setattr(rows, '_worker', worker)
  monkeypatch.setattr(rows.importlib.util, 'find_spec', lambda name: True)
  monkeypatch.setattr(rows.timing, 'alternate', lambda functions, repeats: {
      name: np.ones(repeats) for name in functions})
  compare = lambda logits: list(rows.rows(
      'levit', model, efficient.params(model), efficient.images(model, 2),
      lambda i: logits, 1))
  assert [row['mode'] for row in compare(said)] == [*rows._LABELS.values()]
  with pytest.raises(RuntimeError, match='differs by'):
    compare(2 * said)


@pytest.mark.nightly
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
  spend = cost.of(model)
  msa, mlp = encoder.unread_macs(5, 1, model.width, model.mlp_dim)
  macs = lambda whole_msa, last_msa, whole_mlp, last_mlp: (
      spend.always
      + whole_msa * spend.msa[0] + last_msa * (spend.msa[0] - msa)
      + whole_mlp * spend.mlp[0] + last_mlp * (spend.mlp[0] - mlp))
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
      np.asarray, fixed.uniform(jax.random.key(1), 2, (3, 3), keep=third)))
  want = (spend.adaptive(drawn) - cost.left_out(model, drawn)).mean() / dense
  assert not np.isclose(want, ratios[4])
  np.testing.assert_allclose(ratios[5], want, rtol=1e-6)


@pytest.mark.nightly
def test_rows_of_a_ravit(quick):
  """Behind the last MSA layer of a branch the class token alone is read."""
  model = models.create(
      'ravit_cifar_patch4_32', image_size=8, channels=1, num_classes=4,
      patch_size=2, width=16, num_heads=2, layers=(2, 2))
  rows = list(quick.model_rows(
      'ravit', model, tiny.params(model), 2, [1., 0.5]))
  assert [(r['mode'], r['keep']) for r in rows] == [
      (mode, keep) for keep in (1, 0.5)
      for mode in ('dense', 'cond', 'compact', 'static')
      if (mode, keep) != ('dense', 0.5)]

  def spent(msa, mlp):
    """By hand: behind the fixed encoder one of 5 tokens and two of 17."""
    total = cost.of(model).always
    for branch in ([0], [2, 1]):
      unread = 1  # tokens but the first, until an MSA layer reads them
      for i in branch:
        args = 16, model.mlp_dim
        n = 17 if i else 5
        whole = encoder.macs(n, *args)
        less = encoder.unread_macs(n, 1, *args)
        total += mlp[i] * (whole[1] - unread * less[1])
        total += msa[i] * (whole[0] - unread * less[0])
        unread *= 1 - msa[i]
    return total

  ratios = [row['mac_ratio'] for row in rows]
  dense = spent(np.ones(3), np.ones(3))
  np.testing.assert_allclose(ratios[:4], 1)
  cond, static = (quick._draws(model, 2, 0.5, 'cond')[i] for i in (1, 0))
  many = quick._draws(model, 2, 0.5, 'compact')[1]
  for ratio, draws in ((ratios[4], [cond]), (ratios[6], [static]),
                       (ratios[5], zip(*many))):
    want = np.mean([spent(*draw) for draw in draws]) / dense
    np.testing.assert_allclose(ratio, want, rtol=1e-6)


@pytest.mark.parametrize('keep, want', [(1., (2, 8)), (0.5, (1, 4))])
def test_a_draw_has_its_share_of_layers_that_differ_in_number(
    quick, keep, want):
  for draw in quick._draws(odd.model(num_fixed=0), 2, keep, 'cond'):
    assert [len(a) for a in draw] == [2, 8]
    assert tuple(a.sum() for a in draw) == want


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


@pytest.mark.parametrize('flag, value, given', [
    ('batches', ['8', 'a'], '8,a'), ('batches', [], ''),
    ('keeps', ['0.5', '1.5'], '0.5,1.5'), ('chunks', ['0'], '0')])
def test_flags_that_list_nothing_to_time_are_refused(
    execution, monkeypatch, flag, value, given):
  message = _error(execution, monkeypatch, **{flag: value})
  assert message.startswith(f'error: --{flag}={given} ')


def test_unknown_modes_are_refused(execution, monkeypatch):
  message = _error(execution, monkeypatch, modes=['masked'])
  assert message.startswith("error: --modes has ['masked']")


@pytest.mark.nightly
def test_rows_of_a_cascade_at_given_shares(quick):
  model = models.create(
      'dvt_cifar_32', image_size=8, channels=1, num_classes=4, grids=(2, 4),
      width=8, num_heads=2, depth=1, stem='patch')
  shares, exits = (0.75, 0.25), cost.of(model).exits
  rows = list(quick.cascades.rows(
      'dvt', model, tiny.params(model), 8, shares, repeats=1, dtype='float32'))
  assert [(r['mode'], r['keep']) for r in rows] == [
      ('dense', 1), ('cascade, none leaves', 1), ('cascade, 75/25', 0.625)]
  ratios = [r['mac_ratio'] for r in rows]
  np.testing.assert_allclose(
      ratios, [1, 1, (0.75 * exits[0] + 0.25 * exits[1]) / exits[1]])


@pytest.mark.nightly
def test_rows_of_each_stack(quick):
  model = efficient.levit()
  rows = list(quick.stacks.rows(
      'levit', model, models.fold(model, efficient.params(model)),
      efficient.images(model), 0.5, repeats=1, dtype='float32'))
  names = ['encoders_0 0-1', 'mlp_1 0-1', 'encoders_1 0-2']
  assert [r['mode'] for r in rows] == [
      f'{mode}, {name}' for name in names for mode in ('all', 'compact')]
  # The second holds the subsampling, which always runs, and one MLP.
  _, bridge, stack, _ = model.plan()
  keep = fixed.uniform(jax.random.key(1), efficient.B, (0, 1), keep=0.5).mlp
  mlp = stack.branches[0].macs
  np.testing.assert_allclose(
      rows[3]['mac_ratio'],
      (bridge.macs + np.mean(keep) * mlp) / (bridge.macs + mlp), rtol=1e-6)


@pytest.mark.nightly
def test_rows_of_variants(quick):
  named = {f'keep_ratio={k}': efficient.evo(keep_ratio=k) for k in (1, 0.5)}
  params = efficient.params(efficient.evo())
  rows = list(quick.variants.rows(
      'evo', named, params, efficient.images(efficient.evo()), repeats=1,
      dtype='float32'))
  assert [r['mode'] for r in rows] == list(named)
  whole, half = (cost.of(model).dense for model in named.values())
  assert [r['mac_ratio'] for r in rows] == [1, half / whole]


@pytest.mark.parametrize('value', ['keep_ratio', 'keep_ratio=2', 'depth=3'])
def test_variants_that_cannot_share_parameters_are_refused(
    execution, monkeypatch, value):
  message = _error(execution, monkeypatch, models=['evo_cifar_32'],
                   variants=['keep_ratio=1', value])
  assert value in message


@pytest.mark.parametrize('value', [['0.5'], ['0.5', '0.6'], ['0.5', 'a']])
def test_shares_that_do_not_fit_are_refused(execution, monkeypatch, value):
  message = _error(execution, monkeypatch, shares=value,
                   models=['ravit_cifar_patch4_32'])
  assert message.startswith(f'error: --shares={",".join(value)} ')


@pytest.fixture
def runs(monkeypatch):
  """Lets a run seem to lie in any directory; returns what each is, to set."""
  made = {}

  def find(self):
    config = tiny.get_config()
    phases, exits = made[str(self.workdir)]
    config.phases, config.model.exits = phases, exits
    dataset = dict(num_classes=4, channels=1, mean=[0.5], std=[0.5])
    return saved_run.Saved('phases', 6, dict(
        phase=phases[-1], config=config.to_dict(), dataset=dataset))

  monkeypatch.setattr(saved_run.Run, 'find', find)
  return made


def test_a_cascade_that_no_image_leaves_is_not_timed(
    execution, monkeypatch, tmp_path, runs):
  runs[str(tmp_path)] = ('exits',), ((1, 'mlp'),)
  assert _error(execution, monkeypatch, workdir=[str(tmp_path)]).endswith(
      '--threshold')
  execution.trained.check(tmp_path, threshold=0.5)
  (tmp_path / 'report.json').write_text('{"slack": {"thresholds": [0.5]}}')
  execution.trained.check(tmp_path)


@pytest.mark.parametrize('phases', [('dense',), tiny.PHASES])
def test_a_run_is_timed_after_any_phase(execution, tmp_path, runs, phases):
  runs[str(tmp_path)] = phases, None
  assert execution.trained.check(str(tmp_path))['phase'] == phases[-1]


def test_a_run_that_loads_larger_images_is_timed_on_their_centers(
    quick, monkeypatch, tmp_path, runs):
  """Images of 12 pixels, in a frame of zeros, for a model of 8."""
  runs[str(tmp_path)] = ('exits',), ((1, 'mlp'),)
  framed = np.zeros((5, 12, 12, 1), np.uint8)
  framed[:, 2:-2, 2:-2] = 1
  prediction = types.SimpleNamespace(exit=np.zeros(2), macs=np.ones(2))

  def model(images):
    assert images.shape == (2, 8, 8, 1) and images.all()
    return prediction

  trained, system = quick.trained, types.SimpleNamespace(
      staged=True, model=tiny.model())
  clf = type('', (), dict(system=system, __call__=lambda self, x: model(x)))()
  monkeypatch.setattr(trained.adavit_jax, 'load', lambda *args, **kwargs: clf)
  monkeypatch.setattr(trained.data, 'load', lambda *args, **kwargs: (
      types.SimpleNamespace(test=trained.data.ArraySplit(framed, np.zeros(5)))))
  monkeypatch.setattr(trained, '_cascade', lambda *args: (
      model, 2, lambda p: 0.5, {'cascade': lambda: None}))
  rows = list(trained.rows(str(tmp_path), [2], repeats=1, threshold=0.5))
  assert [row['mode'] for row in rows] == ['dense', 'cascade']
  assert rows[1]['mac_ratio'] == 0.5
