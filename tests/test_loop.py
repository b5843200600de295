"""A run of all phases: its records, its resumption, its complaints."""

import collections
import json
import pathlib
import random
import signal
import sys
import time
import traceback

from adavit_jax import data
from adavit_jax.models import plan
from adavit_jax.runs import due as due_lib
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import preemption
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.runtime import stopping
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import states
from states import one_device  # a fixture
from states import trace_once  # a fixture
import tiny

END = len(tiny.PHASES) * tiny.STEPS


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
  """A trainer whose `workdir` the tests set; all else stays as it is."""
  config = tiny.get_config()
  config.checkpoint_every = 4
  return loop.Trainer(config, str(tmp_path_factory.mktemp('none')),
                      dataset=tiny.dataset())


@pytest.fixture(scope='module')
def whole(trainer, tmp_path_factory):
  """(work directory, final state) of a run that nothing stopped."""
  workdir = str(tmp_path_factory.mktemp('whole'))
  trainer.workdir = workdir
  return workdir, trainer.train()


def _rows(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_all_phases_run_to_the_end(whole):
  workdir, state = whole
  assert int(state.step) == END
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    assert ckpts.steps('phases') == (6, 12, 18, 24)
    assert ckpts.latest() == ('phases', END)
    infos = [ckpts.info(step, 'phases') for step in ckpts.steps('phases')]
    assert ckpts.steps('last') == (10, 16, 22)
    assert ckpts.info(16, 'last')['start'] == 12
  assert [i['phase'] for i in infos] == list(tiny.PHASES)
  assert all(i['finished'] for i in infos)
  assert infos[0]['dataset']['num_classes'] == 4
  assert infos[0]['config']['dense']['steps'] == tiny.STEPS


def test_metrics_file(whole):
  workdir, _ = whole
  keys = {}
  steps = {}
  for row in _rows(workdir):
    for key, value in row.items():
      phase, _, name = key.rpartition('/')
      keys.setdefault(phase, set()).add(name)
      steps.setdefault(phase, set()).add(row['step'])
      assert key == 'step' or np.isfinite(value).all(), (key, value)
      if name in ('keep_msa', 'keep_mlp'):
        assert len(value) == 3 and 0 <= min(value) and max(value) <= 1
      if name in ('accuracy', 'sample_accuracy'):
        assert 0 <= value <= 1
      if name == 'unique_actions':
        assert 1 <= value <= 8
  common = {'learning_rate', 'grad_norm'}
  rl = common | {
      'reward', 'reward_std', 'macs_ratio', 'sample_macs_ratio', 'keep_msa',
      'keep_mlp', 'policy_entropy', 'unique_actions', 'price', 'aux_loss',
      'sample_accuracy'}
  vit = {'loss', 'accuracy'}
  assert keys['dense'] >= common | vit | {'nested_loss', 'masked_loss'}
  assert keys['warm_start'] >= common | {
      'imitation_loss', 'macs_ratio', 'target_macs_ratio'}
  assert keys['policy'] >= rl
  assert keys['joint'] >= rl | vit | {'distill_loss'}
  assert keys['holdout'] == {'accuracy', 'loss', 'macs_ratio'}
  assert steps['holdout'] == {6, 12, 18, 24}
  # Else the runs that are compared below would not depend on the actions.
  assert max(row.get('joint/unique_actions', 0) for row in _rows(workdir)) > 1
  for i, phase in enumerate(tiny.PHASES):
    assert steps[phase] == set(range(6 * i + 1, 6 * i + 7))


@pytest.fixture(scope='module')
def ends(trainer, whole):
  """The state at the end of each phase, from its checkpoint."""
  workdir, _ = whole
  found = {}
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    for i, phase in enumerate(tiny.PHASES):
      shapes = sharded.put_shapes(
          step_lib.abstract_state(trainer.system, phase), trainer.mesh)
      found[phase] = ckpts.restore(shapes, 6 * (i + 1), 'phases')
  return found


@pytest.fixture(scope='module')
def first(trainer):
  """The state before the first phase."""
  return state_lib.init_state(trainer.system, trainer.config.seed)


def test_only_the_trained_groups_change(ends, first):
  first = first.params
  dense, warm, policy, joint = (ends[p].params for p in tiny.PHASES)
  for group in ('policy', 'policy_stats'):
    assert states.same(dense[group], first[group])
  assert not states.same(dense['backbone'], first['backbone'])
  # The averaged parameters are what later phases go on with, and imitate.
  assert set(ends['dense'].ema) == {'backbone'}
  averaged = ends['dense'].ema['backbone']
  assert not states.same(averaged, dense['backbone'])
  for params in (warm, policy):
    assert states.same(params['backbone'], averaged)
  assert states.same(ends['joint'].teacher, {'backbone': averaged})
  assert not states.same(warm['policy'], first['policy'])
  assert not states.same(policy['policy'], warm['policy'])
  for group in ('backbone', 'policy'):
    assert not states.same(joint[group], policy[group])


def test_what_the_policy_phases_start_from(ends, trainer):
  assert ends['dense'].teacher is None
  masks = np.asarray(ends['warm_start'].params['value'].masks.keep)
  np.testing.assert_array_equal(masks[:7].sum(1), np.arange(6, -1, -1))
  stats = ends['warm_start'].params['policy_stats']
  assert 0 < stats.std.min() and np.abs(stats.mean).max() > 0
  for phase in ('policy', 'joint'):
    assert states.same(ends[phase].params['policy_stats'], stats)
  value = [ends[phase].params['value']
           for phase in ('warm_start', 'policy', 'joint')]
  assert states.same(value[1], value[0])
  assert states.same(value[2].masks, value[0].masks)
  assert not states.same(value[2].kernel, value[0].kernel)  # fitted again
  # The controller of the price goes on where the last phase left it.
  prices = [float(ends[p].log_price) for p in tiny.PHASES]
  assert len(set(prices)) == 4
  assert abs(prices[2] - prices[1]) < 6 * trainer.config.policy.price_rate


def test_phases_end_at_the_budget(ends, trainer):
  """On the held-out images, however few the steps of a phase are."""
  system = trainer.system
  for phase in ('warm_start', 'policy', 'joint'):
    actions = trainer.evaluator.decisions(
        state_lib.final_params(ends[phase]), trainer.dataset.holdout,
        knob=trainer.config.nets.threshold)
    ratios = system.cost.ratio(actions)
    # Two of them are alike, or drop a layer at the same shift.
    layer = 2 / plan.num_layers(system.model).msa / len(ratios)
    assert abs(ratios.mean() - trainer.config.mac_target) < layer, phase


def test_feature_statistics_are_those_of_the_training_images(ends, trainer):
  """Of every normalized token of z1, in NumPy."""
  system, split = trainer.system, trainer.dataset.train
  z1 = np.asarray(jax.jit(
      lambda p, x: modes.before_policy(system.model, p, system.normalize(x)))(
          ends['warm_start'].params,
          split.images(np.arange(len(split)))), np.float64)
  centered = z1 - z1.mean(-1, keepdims=True)
  tokens = centered / np.sqrt(centered.var(-1, keepdims=True) + 1e-6)
  features = tokens.reshape(len(split), -1)
  stats = ends['warm_start'].params['policy_stats']
  np.testing.assert_allclose(stats.mean, features.mean(0), atol=1e-5)
  np.testing.assert_allclose(stats.std, features.std(0) + 0.01, rtol=1e-4)


@pytest.fixture
def stop_at(monkeypatch):
  """Lets a signal seem to come at given steps; the loop asks once a step."""
  def at(first, steps):
    asked = iter(range(first + 1, END + 1))
    monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                        lambda self: next(asked) in steps)
  return at


def test_resumed_run_equals_the_uninterrupted_one(
    trainer, whole, tmp_path, stop_at):
  """Stopped in each phase, at a checkpoint's step and between them."""
  trainer.workdir = str(tmp_path)
  at = 0
  for step in (3, 10, 13, 23):
    stop_at(at, {step})
    assert trainer.train() is None
    with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
      assert ckpts.latest() == ('last', step)
      assert not ckpts.info(step, 'last')['finished']
    at = step
  stop_at(at, {END})  # Too late to stop: the run is over.
  state = trainer.train()
  assert states.differ(state, whole[1]) == []
  assert _rows(tmp_path) == _rows(whole[0])


def test_a_signal_between_steps_loses_nothing(
    trainer, whole, tmp_path, monkeypatch):
  trainer.workdir = str(tmp_path)
  places = {'with_stats', 'static_masks', 'fitted', 'refitted', '_on_target',
            '_validate'}
  calls = collections.Counter()
  def check(self):
    here = places.intersection(f.name for f in traceback.extract_stack())
    calls.update([frozenset(here)])
    if calls[frozenset(here)] == 2:
      raise stopping.Stopped
  monkeypatch.setattr(preemption.GracefulStop, 'check', check)
  num_stops = 0
  while (state := trainer.train()) is None:
    num_stops += 1
  assert num_stops == len(calls) and set().union(*calls) == places
  assert states.differ(state, whole[1]) == []
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('phases', END)
  assert _rows(tmp_path) == _rows(whole[0])


def test_metrics_are_checked_before_a_validation():
  """A signal during it saves the state."""
  config = tiny.get_config()
  config.log_every, config.eval_every, config.checkpoint_every = 5, 3, 4
  due = [due_lib.after(config, 'dense', done, False) for done in range(1, 7)]
  assert [d.validation for d in due] == [False, False, True, False, False, True]
  assert [d.line for d in due] == [False, False, True, True, True, True]


def test_stop_at_the_end_of_a_phase_and_a_finished_run(
    trainer, whole, tmp_path, stop_at):
  trainer.workdir = str(tmp_path)
  for start, latest in ((0, ('phases', 6)), (6, ('last', 7))):
    stop_at(start, {6, 7})
    assert trainer.train() is None
    with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
      assert ckpts.steps('phases') == (6,)
      assert ckpts.latest() == latest
  stop_at(7, ())
  assert states.differ(trainer.train(), whole[1]) == []
  # The same call once more finds nothing to do.
  assert states.differ(trainer.train(), whole[1]) == []


def test_resumption_may_change_what_is_written_when(whole):
  config = tiny.get_config()
  config.log_every, config.checkpoint_every = 3, 7
  again = loop.Trainer(config, whole[0], dataset=tiny.dataset())
  assert int(again.train().step) == END


def _signalled(workdir, signum, num_rows):
  """A process that got a signal once metrics.jsonl had some rows."""
  process = processes.Process(workdir.parent, _main, str(workdir))
  path, deadline = workdir / 'metrics.jsonl', time.monotonic() + 300
  while not (path.exists() and path.read_text().count('\n') >= num_rows):
    if process.code is not None or time.monotonic() > deadline:
      process.wait(0)
      pytest.fail(f'no {num_rows} rows: {process.err[-2000:]}')
    time.sleep(0.02)
  time.sleep(random.random() * 0.2)
  process.send(signum)
  process.wait()
  return process


def get_config():
  """Of the processes that are killed."""
  config = tiny.get_config()
  config.phases, config.model.depth, config.dense.steps = ('dense',), 2, 300
  config.checkpoint_every = 100
  return config


def _cheap_step(system, phase, start):
  """A step of state, key and batch that compiles in no time."""
  noise = states.noise(system, phase, start)
  def step(state, images, labels):
    state, metrics = noise(state, images, labels)
    seen = jnp.float32(images).mean() + labels.mean()
    return state.replace(params=jax.tree.map(
        lambda x: x + seen / 100, state.params)), metrics
  return step


@pytest.mark.parametrize('stops', [
    {signal.SIGINT: 130},
    pytest.param({signal.SIGTERM: 0, signal.SIGINT: 130},
                 marks=pytest.mark.nightly)], ids=len)
@pytest.mark.nightly
def test_processes_are_killed_and_resumed(tmp_path, monkeypatch, stops):
  """SIGTERM, Ctrl-C, SIGKILL, each resumed: the same end, bit for bit."""
  monkeypatch.setattr(step_lib, 'make_step', _cheap_step)
  workdir, step = tmp_path / 'run', 0
  for signum, code in stops.items():
    process = _signalled(workdir, signum, step + 3)
    assert process.code == code, process.err[-2000:]
    assert 'stopped by a signal at step' in process.err
    assert 'done' not in process.out
    with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
      assert ckpts.latest()[1] == _rows(workdir)[-1]['step'] >= step + 3
      step = ckpts.latest()[1]

  process = _signalled(workdir, signal.SIGKILL, step + 2)
  assert process.code == -signal.SIGKILL
  assert f'resumed from step {step},' in process.err

  resumed, whole = (
      loop.Trainer(get_config(), str(path), dataset=tiny.dataset()).train()
      for path in (workdir, tmp_path / 'whole'))
  assert states.differ(resumed, whole) == []


def test_evaluation_of_a_split_that_is_no_multiple_of_the_batch(
    trainer, ends):
  split = trainer.dataset.train
  assert len(split) % trainer.config.eval_batch_size
  state = ends['joint']
  out = trainer.evaluator.adaptive(state.params, split, knob=0.5)
  assert [a.shape for a in out.actions] == [(len(split), 3)] * 2
  assert out.loss.shape == (len(split),)
  np.testing.assert_array_equal(
      out.correct, out.prediction == split.labels)
  decided = trainer.evaluator.decisions(state.params, split, knob=0.5)
  again = trainer.evaluator.with_actions(state.params, split, out.actions)
  for actions in (decided, again.actions):
    np.testing.assert_array_equal(actions.keep, out.actions.keep)
  np.testing.assert_array_equal(again.prediction, out.prediction)
  np.testing.assert_allclose(again.loss, out.loss, rtol=1e-5)

  images = trainer.system.normalize(split.images(np.arange(len(split))))
  logits = jax.jit(trainer.system.model.apply)(
      {'params': state.params['backbone']}, images).total
  dense = trainer.evaluator.dense(state.params, split)
  np.testing.assert_array_equal(dense.prediction, logits.argmax(-1))
  log_p = np.asarray(jax.nn.log_softmax(logits))
  np.testing.assert_allclose(
      dense.loss, -log_p[np.arange(len(split)), split.labels], rtol=1e-4)
  nothing = trainer.evaluator.adaptive(state.params, split, knob=0.9999)
  np.testing.assert_array_equal(nothing.actions.keep, 0)


def _main(workdir):
  """`train.py` on the tiny data, slowed so that a signal can hit a step."""
  from absl import app
  from absl import logging
  sys.path.insert(0, tiny.ROOT)
  sys.argv = ['train.py', f'--config={__file__}', f'--workdir={workdir}']
  import train
  make_mesh = mesh_lib.make_mesh
  mesh_lib.make_mesh = lambda *_: make_mesh(1)  # as the fixture `one_device`
  step_lib.make_step = _cheap_step
  data.load = lambda *args, **kwargs: tiny.dataset(seconds=0.1)
  logging.set_verbosity(logging.INFO)
  orbax_manager.quiet_orbax()
  app.run(train.main)
