"""State and batch on a mesh of two axes: the steps of one device."""

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


def _system(**fields):
  config = tiny.get_config()
  config.model.depth = 3
  config.exits.batch_size = 16
  for phase in ('dense', 'policy', 'joint'):
    config[phase].batch_size = 16
    config[phase].steps = STEPS
  config.exits.steps = STEPS
  config.update_from_flattened_dict(fields)
  return system_lib.create(config, tiny.dataset())


def _train(system, phase, sizes):
  """(state, metrics) after `STEPS` steps of a phase on a mesh."""
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
  return jax.device_get((state.replace(key=None), rows))


@pytest.mark.parametrize('phase, fields', [
    ('dense', {}), ('policy', {}), ('joint', {}),
    ('exits', {'phases': ('exits',)}),
    ('dense', {'dense.optimizer': 'muon'})])
@pytest.mark.parametrize('sizes', MESHES)
def test_steps_of_one_device(phase, fields, sizes, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  system = _system(**fields)
  want, metrics = _train(system, phase, (1, 1))
  got, found = _train(system, phase, sizes)
  for path, a in jax.tree_util.tree_leaves_with_path((got, found)):
    pass
  fa=jax.tree_util.tree_leaves_with_path((got.params, got.ema, found)); fb=jax.tree.leaves((want.params,want.ema,metrics))
  bad=[]
  for (p,a),b in zip(fa,fb):
    a,b=np.asarray(a,np.float64),np.asarray(b,np.float64)
    e=np.abs(a-b).max() if a.size else 0
    if e>1e-5: bad.append((jax.tree_util.keystr(p),e))
  print(phase,fields,sizes,len(bad),bad[:12])
