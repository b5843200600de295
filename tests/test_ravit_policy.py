"""A RAViT whose layers a policy drops: loaded, reported, exported and timed."""

import json
import pathlib
import types

import adavit_jax
from adavit_jax import report
from adavit_jax.exits import confidence
from adavit_jax.inference import export
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.policies import learned
from adavit_jax.report import exit_report
from adavit_jax.runs import loop
from adavit_jax.runs import saved_run
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import steps  # a fixture
from states import trace_once  # a fixture
from test_report import opens  # a fixture
import tiny

pytestmark = pytest.mark.nightly

STEPS = 2


@pytest.fixture(scope='module')
def run(steps, tmp_path_factory):
  """(work directory, trainer, final state); the policy decides at place 1."""
  config = tiny.get_config()
  config.phases = ('exits', 'warm_start', 'policy')
  if steps == 'noise':
    config.phases = ('exits', 'policy')  # without a search for masks
  config.model.name = 'ravit_cifar_patch4_32'
  config.model.depth = None  # the field of a ViT
  config.model.update(image_size=8, patch_size=2, width=8, num_heads=2,
                      layers=(2, 2), factors=(2., 1.))
  for phase in config.phases:
    config[phase].update(steps=STEPS, batch_size=8)
  config.exits.ema = 0.5
  config.policy.learning_rate = 0.03  # so that images are told apart
  config.mac_target = 0.8
  workdir = str(tmp_path_factory.mktemp('run'))
  trainer = loop.Trainer(config, workdir, tiny.dataset())
  return workdir, trainer, trainer.train()


@pytest.mark.parametrize('steps', ['trained'], indirect=True)
def test_each_phase_trains_its_groups(run):
  workdir, trainer, state = run
  assert int(state.step) == 3 * STEPS
  fresh = state_lib.init_state(trainer.system, trainer.config.seed)
  for group in state.params:
    assert not states.same(state.params[group], fresh.params[group])
  # The policy's phases leave the model as its exits left it.
  assert states.same(state.teacher, {'backbone': state.params['backbone']})
  # All encoders, of both branches, but the fixed one.
  assert [a.shape for a in state.params['value'].masks] == [(3 * 7, 3)] * 2
  rows = [json.loads(line) for line in pathlib.Path(
      workdir, 'metrics.jsonl').read_text().splitlines()]
  assert {key for row in rows for key in row} >= {
      'exits/loss_0', 'exits/loss_1', 'warm_start/imitation_loss',
      'policy/reward', 'policy/keep_mlp', 'holdout/macs_ratio'}
  ratios = [row['policy/macs_ratio'] for row in rows
            if 'policy/macs_ratio' in row]
  assert len(ratios) == STEPS and min(ratios) < 1
  # After the exits it is their accuracies, then the last one's.
  held = [np.shape(row['holdout/accuracy']) for row in rows
          if 'holdout/accuracy' in row]
  assert held == [(2,), (), ()]


@pytest.fixture
def tiny_data(run, monkeypatch):
  monkeypatch.setattr(
      'adavit_jax.data.load', lambda *args, **kwargs: run[1].dataset)


@pytest.fixture(scope='module')
def decided(run):
  """`Actions` of the policy on the test images."""
  _, trainer, state = run
  found = trainer.evaluator.decisions(
      state.params, trainer.dataset.test, knob=0.5)
  assert 0 < found.keep.mean() < 1
  assert len(np.unique(found.keep, axis=0)) > 1
  return found


def test_a_report_counts_the_layers_that_ran(
    run, decided, tiny_data, opens, capsys):
  workdir, trainer, _ = run
  result = report.evaluate(workdir)
  assert opens == [workdir]
  assert json.loads(json.dumps(result)) == result
  assert 'a policy drops layers' in capsys.readouterr().out

  spend, dense = trainer.system.cost, trainer.system.plain_cost
  first, last = result['exits']
  # Its own early exit runs with the last one.
  assert last['macs'] == pytest.approx(spend.adaptive(decided).mean())
  assert first['macs'] == pytest.approx(spend.stage(0, decided).mean())
  for row, macs in zip((first, last), spend.exits):
    assert row['macs'] <= macs
    assert row['macs_ratio'] == pytest.approx(row['macs'] / dense.dense)
  assert last['macs'] < spend.exits[-1]
  rows = [first, last, *result['curve'],
          *(result[key] for key in ('same_accuracy', 'slack'))]
  # A paper counts all layers.
  assert not any('paper_flops' in row for row in rows)
  # Cascades lie between the one exit and the other.
  for row in rows:
    assert len(row['shares']) == 2 and row['macs'] <= last['macs'] + 1e-3


def test_no_static_sub_networks_are_tuned_beside_exits(
    run, tiny_data, monkeypatch):
  """So it does not matter what devices their batches would fit."""
  make_mesh, find = mesh_lib.make_mesh, saved_run.Run.find
  def joint(*args, **kwargs):
    saved = find(*args, **kwargs)
    config = saved.info['config']
    config['phases'] = [*config['phases'], 'joint']
    return saved._replace(info={**saved.info, 'phase': 'joint'})
  monkeypatch.setattr(saved_run.Run, 'find', joint)
  monkeypatch.setattr(mesh_lib, 'make_mesh', lambda: make_mesh(3))
  monkeypatch.setattr(
      exit_report, 'evaluate', lambda trainer, state, about, **kwargs: (
          types.SimpleNamespace(mesh=trainer.mesh, about=about)))
  reached = report.evaluate(run[0])
  assert (reached.mesh.size, reached.about['phase']) == (3, 'joint')


# That the policy may drop before each exit, of three behind one encoder.
LAYERS = (0,), (1, 2)


@pytest.fixture(scope='module')
def clf(run):
  return adavit_jax.load(run[0], max_batch_size=16)


@pytest.fixture(scope='module')
def by_hand(run, clf):
  """(actions, [2, 16, K] logits) of the test images, every branch computed."""
  _, trainer, state = run
  model, nets = clf.system.model, clf.system.nets

  @jax.jit
  def oracle(params, images):
    images = clf.system.normalize(images)
    x = modes.before_policy(model, params, images)
    actions = learned.greedy(
        nets, params['policy'],
        learned.observe(nets, model, params, x, images))
    first, second = (
        Actions(*(a[:, np.array(layers)] for a in actions))
        for layers in LAYERS)
    x = masked.run(model, params, x, images, first, start=1, stop=2).x
    early, _ = model.classify(params['backbone'], x, 0, EVAL)
    x = masked.run(model, params, x, images, second, start=2).x
    last, _ = model.classify(params['backbone'], x, 1, EVAL)
    return actions, jnp.stack([early.total, last.total])

  return jax.device_get(oracle(
      state_lib.final_params(state),
      trainer.dataset.test.images(np.arange(16))))


def test_exported_stages_are_the_same_model(
    run, decided, clf, by_hand, tmp_path):
  workdir, trainer, _ = run
  _, want = by_hand
  size = 4
  with pytest.raises(ValueError, match='^batch_size=None'):
    export.export_stages(clf, tmp_path, platforms=('cpu',))
  paths = export.export_stages(
      clf, tmp_path, batch_size=size, platforms=('cpu',))
  about = json.loads((tmp_path / 'stage_0.json').read_text())
  assert about['stage_macs'] is None and about['num_stages'] == len(paths) == 2
  programs = [jax_export.deserialize(bytearray(path.read_bytes()))
              for path in paths]

  images = trainer.dataset.test.images(np.arange(len(decided.msa)))
  got = [[], []]
  for start in range(0, len(images), size):
    batch, carry = images[start:start + size], ()
    for program, rows in zip(programs, got):
      *carry, logits = program.call(batch, *carry)
      rows.extend(np.asarray(logits))
    actions = Actions(*carry[0][1])
    np.testing.assert_array_equal(
        actions.keep, decided.keep[start:start + size])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  for threshold, logits in ((confidence.ALWAYS, got[0]),
                            (confidence.NEVER, got[1])):
    clf.thresholds = threshold
    np.testing.assert_allclose(
        clf(images).logits, logits, rtol=1e-5, atol=1e-5)


def test_its_cascade_is_timed(run, decided, tiny_data, monkeypatch):
  workdir, trainer, _ = run
  monkeypatch.syspath_prepend(pathlib.Path(tiny.ROOT, 'benchmarks'))
  import trained
  for name in ('_WARM_UP', '_TURN'):
    monkeypatch.setattr(trained.timing, name, 0.)
  dense, row = trained.rows(
      workdir, [4], repeats=1, threshold=confidence.NEVER)
  assert (dense['mode'], dense['mac_ratio']) == ('dense', 1)
  assert (row['mode'], row['keep']) == ('cascade, threshold given', 1)
  rng = np.random.default_rng(0)
  _, images = (rng.integers(0, len(decided.msa), 4) for _ in range(2))
  macs = trainer.system.cost.adaptive(decided)[images].mean()
  assert row['mac_ratio'] == pytest.approx(
      macs / trainer.system.plain_cost.dense)


def test_a_ravit_with_a_policy_loads_as_a_cascade(run, clf, by_hand):
  """It is the policy with every branch computed, but for what it spends."""
  images = run[1].dataset.test.images(np.arange(16))
  (actions, logits), cost = by_hand, clf.system.cost
  assert len(np.unique(actions.keep, axis=0)) > 1
  macs = np.cumsum([
      [total - sum((1 - a[i]) * m[i] for i in layers for a, m in zip(
          keep, (cost.msa, cost.mlp))) for keep in zip(*actions)]
      for total, layers in zip(cost.stages, LAYERS)], axis=0)
  assert macs[1].max() <= sum(cost.stages) > macs[1].min()

  sure = np.float64(confidence.confidences(
      confidence.RULES['entropy'], logits))
  middle = np.sort(sure[0])[[7, 8]].mean()
  for threshold in (confidence.NEVER, middle):
    clf.thresholds = threshold
    chosen = confidence.choose(sure, threshold)
    rows = np.arange(16)
    for n in (16, 1):
      got = clf(images[:n])
      np.testing.assert_array_equal(got.exit, chosen[:n])
      np.testing.assert_allclose(
          got.logits, logits[chosen, rows][:n], rtol=1e-4, atol=1e-4)
      np.testing.assert_array_equal(
          got.labels, logits[chosen, rows][:n].argmax(-1))
      np.testing.assert_array_equal(got.macs, macs[chosen, rows][:n])
  assert set(chosen) == {0, 1}


def test_before_its_policy_a_ravit_runs_all_layers(run):
  workdir, trainer, state = run
  clf = adavit_jax.load(workdir, phase='exits', max_batch_size=4)
  got = clf(trainer.dataset.test.images(np.arange(4)))
  np.testing.assert_array_equal(got.macs, sum(clf.system.plain_cost.stages))
  pixels = trainer.dataset.test.images(np.arange(4))
  want = modes.forward(
      clf.system.model, state.params, clf.system.normalize(pixels)).total
  np.testing.assert_allclose(got.logits, want, rtol=1e-4, atol=1e-4)
