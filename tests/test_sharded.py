"""State and batch on a mesh of two axes: the steps of one device."""

import dataclasses

from adavit_jax import data
from adavit_jax.runs import checkpoints
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import states
import tiny

STEPS = 10
MESHES = (8, 1), (4, 2), (1, 8)


@pytest.mark.parametrize('shape, num, want', [
    ((12, 384, 1536), 4, P(None, None, 'fsdp')),
    ((12, 1536, 384), 4, P(None, 'fsdp')),
    ((12, 384, 384), 4, P(None, None, 'fsdp')),  # of equal ones, the last
    ((1, 197, 1024), 8, P(None, None, 'fsdp')),
    ((1000, 384), 16, P(None, 'fsdp')),  # 16 does not divide 1000
    ((999, 333), 4, P()),
    ((12, 384), 4, P()),  # small
    ((12, 384, 1536), 1, P()),
    ((), 8, P())])
def test_the_largest_axis_is_sharded(shape, num, want):
  assert sharded.spec(shape, num) == want


def test_without_the_axis_nothing_is_done():
  tree = {'numpy': np.ones((2, 2**15)), 'number': 1.}
  assert sharded.whole(tree) is tree
  tree = sharded.put({'kernel': np.ones((2, 2**15))}, mesh_lib.make_mesh(8))
  assert sharded.whole(tree) is tree
  traced = jax.jit(sharded.whole).trace(tree)
  assert not traced.jaxpr.eqns


def test_a_mesh_that_does_not_fit_is_named_at_once(tmp_path):
  config = tiny.get_config()
  config.mesh.fsdp = 3
  with pytest.raises(ValueError, match='mesh.fsdp=3 do not fit the 8 visible'):
    loop.Trainer(config, str(tmp_path), tiny.dataset())
  config.mesh.fsdp = 8
  config.dense.batch_size = 12
  with pytest.raises(ValueError, match='dense.batch_size=12 .* 8 devices'):
    loop.Trainer(config, str(tmp_path), tiny.dataset())


def _system(**fields):
  config = tiny.get_config()
  config.model.depth = 2  # compiles faster
  for phase in ('dense', 'policy', 'joint', 'exits'):
    config[phase].update(batch_size=16, steps=STEPS)
  config.update_from_flattened_dict(fields)
  return system_lib.create(config, tiny.dataset())


def _train(system, phase, sizes):
  """(state, metrics of each step) after `STEPS` steps of a phase on a mesh."""
  mesh = mesh_lib.make_mesh(*sizes)
  state = sharded.put(state_lib.init_state(system, 0), mesh)
  state = state.replace(teacher=jax.tree.map(
      jnp.copy, state_lib.model_params(state.params)))
  state = step_lib.begin_phase(system, state, phase, mesh)
  if sizes[1] > 1:
    assert any(x.sharding.spec for x in jax.tree.leaves(state.opt_state))
  step = step_lib.jitted(step_lib.make_step(system, phase, 0), state, mesh)
  rng, rows = np.random.default_rng(0), []
  train = tiny.dataset().train
  for _ in range(STEPS):
    places = rng.integers(0, len(train), 16)
    batch = mesh_lib.shard_batch(
        (train.images(places), train.labels[places]), mesh)
    state, metrics = step(state, *batch)
    rows.append(metrics)
  for x, sharding in zip(*map(jax.tree.leaves, (
      state, sharded.shardings(state, mesh)))):
    assert x.sharding.is_equivalent_to(sharding, x.ndim)
  return state, jax.device_get(rows)


def _close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.nightly
@pytest.mark.parametrize('phase, fields', [
    ('dense', {}), ('policy', {}), ('joint', {}),
    ('exits', {'phases': ('exits',)}), ('dense', {'dense.optimizer': 'muon'})])
@pytest.mark.parametrize('sizes', MESHES)
def test_ten_steps_are_those_of_one_device(sizes, phase, fields, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  system = _system(**fields)
  (want, losses), (got, found) = (
      _train(system, phase, each) for each in ((1, 1), sizes))
  _close((states.learned(got), found), (states.learned(want), losses))


@pytest.mark.parametrize('noise', [
    True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_run_goes_on_with_another_mesh(
    noise, tmp_path, monkeypatch, caplog):
  """It says so, and ends as on one device."""
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  if noise:  # in place of real steps, which compile for long
    monkeypatch.setattr(step_lib, 'make_step', states.noise)
  config, dataset = tiny.get_config(), tiny.dataset()
  config.phases, config.model.depth = ('dense',), 2
  dataset = dataclasses.replace(
      dataset, holdout=data.ArraySplit(*(x[:0] for x in (
          dataset.train.images(np.arange(1)), dataset.train.labels))))

  def train(name, sizes):
    config.mesh.update(data=sizes[0], fsdp=sizes[1])
    return loop.Trainer(config, str(tmp_path / name), dataset).train()

  want = train('one', (1, 1))
  asked = iter(range(1, 99))
  with monkeypatch.context() as patch:
    patch.setattr(preemption.GracefulStop, 'should_stop',
                  lambda self: next(asked) == 3)
    assert train('moved', (4, 2)) is None
  with checkpoints.Checkpoints(str(tmp_path / 'moved'), read_only=True) as c:
    assert c.info()['devices'] == dict(
        processes=1, kind='cpu', data=4, fsdp=2)
  caplog.clear()
  got = train('moved', (1, 8))
  assert ('resumed on 1 x 8 devices of kind cpu in 1 process, saved on 4 x 2 '
          'devices of kind cpu in 1 process') in caplog.text
  assert any(x.sharding.spec for x in jax.tree.leaves(got.opt_state))
  assert int(got.step) == int(want.step) == tiny.STEPS
  _close(states.learned(got), states.learned(want))


@pytest.mark.nightly
def test_all_that_a_run_does_between_steps(tmp_path, monkeypatch):
  """Masks, values, statistics, thresholds; also for a run that starts there."""
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  monkeypatch.setattr(step_lib, 'make_step', states.noise)
  config, found = tiny.get_config(), []
  for name, sizes in (('one', (1, 1)), ('four', (2, 2))):
    config.mesh.update(data=sizes[0], fsdp=sizes[1])
    state = loop.Trainer(
        config, str(tmp_path / name), tiny.dataset()).train()
    found.append((states.learned(state), np.array(state.log_price)))
  _close(*found)
  config.phases, config.init.workdir = ('joint',), str(tmp_path / 'four')
  state = loop.Trainer(
      config, str(tmp_path / 'next'), tiny.dataset()).train()
  assert any(x.sharding.spec for x in jax.tree.leaves(state.teacher))
