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
  x, key = jnp.arange(12.).reshape(6, 2), jax.random.key(3)
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
  config.dense.drop_path = 0.
  config.static.update(policy='mask', keep='10')
  config[phase].update(batch_size=16, **overrides)
  return config


class _Teacher:
  """Answers with what is in the corners of the images."""

  def logits(self, params, images, mean, std):
    del mean, std
    return params * images[:, ::7, ::7, 0].reshape(-1, 4)


def _stepped(phase, parts, mesh, taught=(), **overrides):
  """State and metrics after a step without noise."""
  dataset = tiny.dataset()
  config = _config(phase, accumulate=parts, **overrides)
  accumulate.check(config, mesh)
  system = system_lib.create(config, dataset)
  phases.check(system)
  state = sharded.put(state_lib.init_state(system, 0), mesh)
  state = state.replace(teacher=jax.tree.map(
      jnp.copy, state_lib.model_params(state.params)))
  state = step_lib.begin_phase(system, state, phase, mesh)
  rows = np.arange(16)
  batch = dataset.train.images(rows), dataset.train.labels[rows]
  if config[phase].get('views', 0):
    read = step_lib.make_batch(system, phase)(state.params, state.key, *batch)
    batch = read._replace(images=None), batch[1]
  teacher = _Teacher() if taught else None
  return step_lib.jitted(
      states.make_step(system, phase, 0, teacher=teacher), state, mesh)(
          state, *mesh_lib.shard_batch(batch, mesh), *taught)


@pytest.mark.parametrize('phase, sizes, options', [
    ('exits', (4, 2), {}),
    ('dense', (1, 1), dict(taught=(jnp.float32(.1),), mask_weight=0.)),
    ('classifier_wise', (1, 1), dict(distill=.5)),
    ('classifier_wise', (1, 1), dict(views=1)),
    *(pytest.param(phase, (1, 1), {}, marks=pytest.mark.nightly)
      for phase in ('exits', 'layer_wise', 'last_exit', 'static'))])
def test_a_step_in_parts(phase, sizes, options, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  want, metrics = _stepped(phase, 1, mesh_lib.make_mesh(1, 1), **options)
  got, found = _stepped(phase, 2, mesh_lib.make_mesh(*sizes), **options)
  assert found.keys() == metrics.keys() and found['grad_norm'] > 0
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=2e-5, atol=2e-6), a, b)
  close(jax.device_get(found), jax.device_get(metrics))
  # The moments are the gradients, which Adam's update would hide.
  close(*(jax.device_get(jax.tree.leaves(s.opt_state)) for s in (got, want)))


def test_random_masks_in_parts():
  """Every part has its share of masked rows."""
  _, metrics = _stepped('dense', 4, mesh_lib.make_mesh(1, 1), nested=0.)
  assert metrics['masked_loss'] > 0
  match = r'^dense\.accumulate=16 .*dense\.random_masks=0\.5\)'
  with pytest.raises(ValueError, match=match):
    _stepped('dense', 16, mesh_lib.make_mesh(1, 1))


@pytest.mark.parametrize('phase, parts, match', [
    ('exits', 3, r'^exits\.accumulate=3 .*batch_size=16 .* 8 .*set it to 2'),
    ('exits', 4, r'^exits\.accumulate=4 .*batch_size=16 .* 8 .*set it to 2'),
    *((phase, 2, rf'^{phase}\.accumulate=2 .*set it to 1')
      for phase in ('warm_start', 'policy', 'joint'))])
def test_refused(phase, parts, match):
  with pytest.raises(ValueError, match=match):
    accumulate.check(_config(phase, accumulate=parts), mesh_lib.make_mesh())


def test_what_needs_the_whole_batch():
  system = system_lib.create(
      _config('static', accumulate=2, representation=.5), tiny.dataset())
  with pytest.raises(ValueError, match=r'^static\.accumulate=2 .*represent'):
    phases.check(system)
  config = config_lib.default_config()
  config.model.update(name='levit_128s', image_size=64, exits=((1, 'mlp'),))
  config.data.image_size = 64
  for phase in ('last_exit', 'classifier_wise'):
    config.phases, config[phase].accumulate = (phase,), 2
    system = system_lib.create(config, tiny.dataset())
    if phase == 'classifier_wise':  # reads the statistics, and leaves them
      phases.check(system)
    else:
      with pytest.raises(ValueError, match=r'^last_exit\.accumulate=2 .*levit'):
        phases.check(system)


def test_a_run_checks_it(tmp_path):
  for parts in (0, 3):
    with pytest.raises(ValueError, match=rf'^exits\.accumulate={parts} '):
      loop.Trainer(_config('exits', accumulate=parts), str(tmp_path))
