"""Exits trained on a backbone, and layer by layer."""

import dataclasses
import json

import adavit_jax
from adavit_jax import data
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.runs import first_state
from adavit_jax.runs import loop
from adavit_jax.runs import phase_start
from adavit_jax.runs import preemption
from adavit_jax.runs import saved_run
from adavit_jax.runtime import stages as stages_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
from adavit_jax.train.phases import layer_wise
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import trace_once  # a fixture
import tiny

EXITS = ((1, 'mlp'), (3, 'mlp'))


def _config(phase, **fields):
  config = tiny.get_config()
  config.phases = (phase,)
  config.model.exits = EXITS
  config.data.crop_padding = 0
  for name in phases.having('exits'):
    config[name].update(steps=2, batch_size=8, learning_rate=1e-2)
  config.update_from_flattened_dict(fields)
  return config


def _without_holdout(dataset):
  """A run on it compiles no evaluation."""
  nothing = data.ArraySplit(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int))
  return dataclasses.replace(dataset, holdout=nothing)


@pytest.fixture(scope='module')
def dataset():
  return tiny.dataset()


@pytest.fixture(scope='module')
def train(dataset, tmp_path_factory):
  """A function: config to (work directory, trainer, final state)."""
  def run(config):
    workdir = str(tmp_path_factory.mktemp(config.phases[-1]))
    trainer = loop.Trainer(config, workdir, _without_holdout(dataset))
    return workdir, trainer, trainer.train()
  return run


@pytest.fixture(scope='module')
def policies(train):
  """Of a plain ViT: its dense phase, then a policy; both learn nothing."""
  config = tiny.get_config()
  config.phases, config.model.num_fixed = ('dense', 'policy'), 2
  config.dense.steps = config.policy.steps = 1
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', states.noise)
    return train(config)


@pytest.fixture(scope='module')
def last_exit(train):
  return train(_config('last_exit'))


def _fresh(trainer):
  """Parameters before the first step."""
  return state_lib.init_state(trainer.system, trainer.config.seed).params


def test_the_last_exit_fits_a_model_with_heads(dataset):
  """Nothing is compiled; `nightly` trains it."""
  system = system_lib.create(_config('last_exit'), dataset)
  states.check_step(system, 'last_exit')


@pytest.mark.nightly
def test_last_exit_trains_the_backbone_alone(last_exit):
  _, trainer, state = last_exit
  before = _fresh(trainer)
  assert states.same(state.params['heads'], before['heads'])
  changed = states.differ(state.params['backbone'], before['backbone'])
  for group in before['backbone']:
    assert any(path.startswith(f"['{group}']") for path in changed), group


def _restored(workdir, system, phase=''):
  """The state that a run gives to a system."""
  with saved_run.Run(workdir) as run:
    return run.state(run.find(phase=phase), system, mesh_lib.make_mesh())


@pytest.mark.nightly
def test_other_exits_on_the_backbone_of_a_run(layers, dataset):
  workdir, trainer, state = layers
  config = _config('classifier_wise', **{'model.exits': ((2, 'mlp'),)})
  other = system_lib.create(config, dataset)
  found = _restored(workdir, other).params
  assert states.same(found['backbone'], state.params['backbone'])
  fresh = state_lib.init_state(other, config.seed).params
  assert states.same(found['heads'], fresh['heads'])
  # With the same exits their heads come along.
  same = _restored(workdir, trainer.system).params
  assert states.same(same, state.params)


def test_heads_of_a_run_stay_on_their_backbone(
    layers, train, dataset, tmp_path):
  workdir, _, _ = layers
  with pytest.raises(
      ValueError, match=f"config.phases=.*'last_exit' .*{workdir}"):
    train(_config('last_exit', **{'init.workdir': workdir}))
  for fields in ({'model.exits': ((2, 'mlp'),)},
                 {'phases': ('last_exit', 'classifier_wise')}):
    trainer = loop.Trainer(
        _config('last_exit', **{'init.workdir': workdir}, **fields),
        str(tmp_path), _without_holdout(dataset))
    first_state.from_run(trainer)


def test_another_number_of_heads_is_another_model(layers, dataset):
  workdir, _, _ = layers
  other = system_lib.create(
      _config('classifier_wise', **{'model.num_heads': 1}), dataset)
  with pytest.raises(ValueError, match='num_heads=2 .*--config.model.num_heads'
                     '=2'):
    _restored(workdir, other)


@pytest.mark.nightly
def test_exits_on_the_backbone_of_a_plain_run(policies, train, monkeypatch):
  workdir, plain, _ = policies
  monkeypatch.setattr(step_lib, 'make_step', states.noise)
  _, trainer, state = train(_config('classifier_wise', **{
      'init.workdir': workdir, 'init.phase': 'dense'}))
  assert trainer.system.nets is None and int(state.step) == 2
  dense = _restored(workdir, plain.system, 'dense')
  assert dense.ema is not None
  assert states.same(state.params['backbone'],
                     state_lib.final_params(dense)['backbone'])


def test_a_policy_that_nothing_has_trained(policies, train):
  with pytest.raises(ValueError, match="'dense'.* exits.policy=True"):
    train(_config('classifier_wise', **{
        'init.workdir': policies[0], 'init.phase': 'dense',
        'exits.policy': True, 'model.num_fixed': 2}))


@pytest.mark.nightly
def test_exits_learn_on_a_frozen_backbone_with_a_policy(
    policies, dataset, tmp_path):
  """One of them lies before the place where it decides."""
  workdir, plain, trained = policies
  config = _config('classifier_wise', **{
      'init.workdir': workdir, 'exits.policy': True, 'model.num_fixed': 2,
      'nets.threshold': 0.3})  # at which images differ
  trainer = loop.Trainer(config, str(tmp_path), dataset)
  state = trainer.train()
  for group in ('backbone', 'policy', 'policy_stats'):
    assert states.same(state.params[group], trained.params[group])
  changed = states.differ(state.params['heads'], _fresh(trainer)['heads'])
  assert len(changed) == len(jax.tree.leaves(state.params['heads']))
  with open(tmp_path / 'metrics.jsonl') as f:
    rows = [row for row in map(json.loads, f) if 'classifier_wise/loss' in row]
  assert len(rows) == 2 and all(
      np.isfinite(row[f'classifier_wise/loss_{i}'])
      for row in rows for i in range(2))

  test = dataset.test
  want = trainer.exit_evaluator('classifier_wise', state.params, test)
  assert len(np.unique(want.macs)) > 3
  limit = np.float64(trainer.system.cost.stages)[:, None]
  assert (want.macs <= limit).all() and (want.macs[0] == limit[0]).all()
  clf = adavit_jax.load(str(tmp_path), max_batch_size=16)
  clf.thresholds = thresholds = [
      _between(want.confidence[0], 10), _between(want.confidence[1], 8)]
  chosen = confidence_lib.choose(want.confidence, thresholds)
  assert set(chosen) == {0, 1, 2}
  rows = np.arange(len(test))
  got = clf(test.images(rows))
  np.testing.assert_array_equal(got.exit, chosen)
  np.testing.assert_array_equal(got.labels, want.prediction[chosen, rows])
  np.testing.assert_array_equal(got.macs, want.macs.cumsum(0)[chosen, rows])


def _between(values, num):
  """A number that so many of the values are below."""
  return np.sort(np.float64(values))[num - 1:num + 1].mean()


def _pieces(tree):
  """What each stage of exits after 1 and 3 of 4 encoders owns, by hand."""
  vit, heads = tree['backbone'], tree['heads']
  def encoders(*rows):
    return jax.tree.map(lambda leaf: leaf[np.array(rows)], vit['encoders'])
  start = ('patch_embed', 'cls', 'dist', 'pos_embedding')
  end = ('norm', 'head', 'head_dist')
  pick = lambda names: [vit[name] for name in names if name in vit]
  found = [[pick(start), encoders(0), heads['exit_0']],
           [encoders(1, 2), heads['exit_1']],
           [encoders(3), pick(end)]]
  count = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))
  assert count(found) == count(tree), 'every number has one owner'
  return found


# Wherever the policy would decide.
@pytest.mark.parametrize('num_fixed', [0, 2])
def test_changes_of_one_stage_only(dataset, num_fixed):
  system = system_lib.create(_config('layer_wise', **{
      'layer_wise.steps': 7, 'model.num_fixed': num_fixed,
      'model.distillation': True}), dataset)
  ones = jax.tree.map(np.ones_like, tiny.params(system.model))
  only = jax.jit(lambda *args: layer_wise.only_stage(system, *args))
  for done, stage in enumerate([0, 0, 1, 1, 2, 2, 2]):
    got = only(ones, done)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, ones)
    for owner, piece in enumerate(_pieces(jax.device_get(got))):
      for leaf in jax.tree.leaves(piece):
        np.testing.assert_array_equal(leaf, float(owner == stage))


LAYER_WISE = {'layer_wise.steps': 7,  # one more than three rounds of 2
              'checkpoint_every': 100}


@pytest.fixture(scope='module')
def layers(train):
  return train(_config('layer_wise', **LAYER_WISE))


@pytest.fixture(scope='module')
def stepwise(layers, dataset):
  """(step function, batches, 7 + 1 states, metrics) of seven steps."""
  _, trainer, _ = layers
  step = jax.jit(step_lib.make_step(trainer.system, 'layer_wise', 0),
                 donate_argnums=0,
                 out_shardings=mesh_lib.replicated(trainer.mesh))
  state = sharded.put(
      state_lib.init_state(trainer.system, 0), trainer.mesh)
  state = phase_start.enter(trainer, state, 'layer_wise')
  stages, metrics, batches = [states.copy(state)], [], []
  for i in range(7):
    rows = np.arange(8) + 4 * i
    batches.append(mesh_lib.shard_batch(
        (dataset.train.images(rows), dataset.train.labels[rows]),
        trainer.mesh))
    state, m = step(state, *batches[-1])
    stages.append(states.copy(state))
    metrics.append(jax.device_get(m))
  return step, batches, stages, metrics


def test_one_stage_learns_at_a_time(stepwise):
  _, _, stages, metrics = stepwise
  pieces = [_pieces(s.params) for s in stages]
  for i, learning in enumerate([0, 0, 1, 1, 2, 2, 2]):
    assert metrics[i]['exit'] == learning
    for k in range(3):
      same = states.same(pieces[i][k], pieces[i + 1][k])
      assert same == (k != learning), (i, k)


def test_the_loss_of_a_round_is_that_of_its_exit(layers, stepwise):
  _, trainer, _ = layers
  _, batches, stages, metrics = stepwise
  system = trainer.system
  run = jax.jit(lambda params, images: stages_lib.exit_logits(
      system.model, params, system.normalize(images)))
  for i, stage in ((0, 0), (3, 1), (6, 2)):
    images, labels = batches[i]
    log_p = np.asarray(jax.nn.log_softmax(run(stages[i].params, images)))
    want = -log_p[:, np.arange(8), np.asarray(labels)].mean(1)
    np.testing.assert_allclose(metrics[i]['loss'], want[stage], rtol=1e-4)
    assert np.abs(want - want[stage])[np.arange(3) != stage].min() > 1e-3


def test_every_round_has_a_fresh_optimizer(layers, stepwise):
  _, trainer, _ = layers
  step, batches, stages, metrics = stepwise
  rates = [float(m['learning_rate']) for m in metrics]
  assert rates[0] == rates[2] == rates[4] == np.float32(1e-2)
  assert rates[1] == rates[3] == rates[5] < rates[0]
  # What is left over goes on at the end of the last round's schedule.
  np.testing.assert_allclose(rates[6], 1e-2 * 0.01, rtol=1e-5)
  counts = [{int(x) for x in jax.tree.leaves(s.opt_state)
             if x.dtype == jnp.int32} for s in stages]
  assert counts == [{0}, {1}, {2}, {1}, {2}, {1}, {2}, {3}]
  # The first step of a round does not see what the round before left.
  for i, fresh in ((2, True), (3, False)):
    state = states.copy(stages[i])
    spoilt = sharded.put(jax.tree.map(
        lambda x: np.asarray(x) + 1, state.opt_state), trainer.mesh)
    again, _ = step(state.replace(opt_state=spoilt), *batches[i])
    assert states.same(again.params, stages[i + 1].params) == fresh


def test_resumed_in_a_round_equals_the_uninterrupted_one(
    layers, tmp_path, monkeypatch):
  workdir, trainer, whole = layers
  monkeypatch.setattr(trainer, 'workdir', str(tmp_path))
  asked = iter(range(1, 8))
  monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                      lambda self: next(asked) == 3)
  assert trainer.train() is None
  again = trainer.train()
  assert int(again.step) == 7 and states.same(again, whole)
