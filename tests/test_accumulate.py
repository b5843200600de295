"""Batches in parts: the step of a whole batch."""

from adavit_jax.runs import loop
from adavit_jax.train import accumulate
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import states
import tiny


def test_parts_and_keys():
  """Part i has every k-th image and a key of its own; floats are averaged."""
  x, key = np.arange(12.).reshape(6, 2), jax.random.key(3)
  def function(scale, batch, key):
    return {'sum': scale * batch.sum(0), 'first': batch[0], 'count': 7,
            'noise': jax.random.normal(key, (6,))}
  got = accumulate.mean(
      lambda *args: jax.tree.map(jnp.asarray, function(*args)), 2., x, key, 3)
  np.testing.assert_allclose(got['sum'], 2 * x.sum(0) / 3, rtol=1e-6)
  np.testing.assert_allclose(got['first'], x[:3].mean(0), rtol=1e-6)
  noise = [jax.random.normal(jax.random.fold_in(key, i), (6,))
           for i in range(3)]
  np.testing.assert_allclose(got['noise'], np.mean(noise, 0), rtol=1e-5)
  assert got['count'] == 7 and got['count'].dtype == jnp.int32


def _config(phase, **overrides):
  config = tiny.get_config()
  config.phases, config.model.depth = (phase,), 2
  config.model.exits = ((1, 'mlp'),) if phase in phases.having('exits') else ()
  config.dense.update(drop_path=0., mask_weight=0.)
  config.static.update(policy='mask', keep='10')
  config[phase].update(batch_size=16, **overrides)
  return config


def _stepped(phase, parts, mesh):
  """State and metrics after a step without noise."""
  dataset = tiny.dataset()
  system = system_lib.create(_config(phase, accumulate=parts), dataset)
  accumulate.check(system, mesh)
  state = sharded.put(state_lib.init_state(system, 0), mesh)
  state = state.replace(teacher=jax.tree.map(
      jnp.copy, state_lib.model_params(state.params)))
  state = step_lib.begin_phase(system, state, phase, mesh)
  rows = np.arange(16)
  batch = mesh_lib.shard_batch(
      (dataset.train.images(rows), dataset.train.labels[rows]), mesh)
  return step_lib.jitted(
      states.make_step(system, phase, 0), state, mesh)(state, *batch)


@pytest.mark.parametrize('phase, sizes', [
    ('exits', (4, 2)), ('static', (1, 1)), ('classifier_wise', (1, 1)),
    *(pytest.param(phase, (1, 1), marks=pytest.mark.nightly)
      for phase in ('dense', 'exits', 'last_exit', 'layer_wise'))])
def test_a_step_in_parts(phase, sizes, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  want, metrics = _stepped(phase, 1, mesh_lib.make_mesh(1, 1))
  got, found = _stepped(phase, 2, mesh_lib.make_mesh(*sizes))
  assert found.keys() == metrics.keys() and found['grad_norm'] > 0
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=2e-5, atol=2e-6), a, b)
  close(jax.device_get(found), jax.device_get(metrics))
  # The moments are the gradients, which Adam's update would hide.
  close(*(jax.device_get(jax.tree.leaves(s.opt_state)) for s in (got, want)))


@pytest.mark.parametrize('phase, parts, match', [
    ('exits', 3, r'^exits\.accumulate=3 .*batch_size=16'),
    ('exits', 4, r'^exits\.batch_size/exits\.accumulate=4 .*8 devices'),
    *((phase, 2, rf'^{phase}\.accumulate=2 .*set it to 1')
      for phase in ('warm_start', 'policy', 'joint'))])
def test_refused(phase, parts, match):
  system = system_lib.create(_config(phase, accumulate=parts), tiny.dataset())
  with pytest.raises(ValueError, match=match):
    accumulate.check(system, mesh_lib.make_mesh())


def test_batch_statistics_are_refused():
  config = config_lib.default_config()
  config.update(phases=('dense',))
  config.model.update(name='levit_128s', image_size=64)
  config.data.image_size, config.dense.accumulate = 64, 2
  system = system_lib.create(config, tiny.dataset())
  with pytest.raises(ValueError, match=r'^dense\.accumulate=2 .*levit'):
    accumulate.check(system, mesh_lib.make_mesh(1, 1))


def test_a_run_checks_it(tmp_path):
  with pytest.raises(ValueError, match=r'^exits\.accumulate=0 '):
    loop.Trainer(_config('exits', accumulate=0), str(tmp_path), tiny.dataset())
  with pytest.raises(ValueError, match=r'^exits\.accumulate=3 '):
    loop.Trainer(_config('exits', accumulate=3), str(tmp_path), tiny.dataset())
