"""The mesh, batch and state on it, and metrics that are not finite."""

import types

from adavit_jax import errors
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_make_mesh():
  mesh = mesh_lib.make_mesh()
  assert dict(mesh.shape) == {'data': 8, 'fsdp': 1}
  assert mesh.size == jax.device_count() == 8
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
  assert mesh_lib.make_mesh(2).devices.tolist() == [
      [device] for device in jax.devices()[:2]]


@pytest.mark.parametrize('sizes, want', [
    ((-1, 2), (4, 2)), ((1, -1), (1, 8)), ((2, 2), (2, 2)), ((2, -1), (2, 4))])
def test_sizes_of_the_axes(sizes, want):
  mesh = mesh_lib.make_mesh(*sizes)
  assert mesh.devices.shape == want
  # Along 'fsdp', devices are neighbors.
  assert mesh.devices.flatten().tolist() == jax.devices()[:mesh.size]


@pytest.mark.parametrize('sizes, words', [
    ((0, 1), 'mesh.data=0 must'), ((-1, -2), 'mesh.fsdp=-2 must'),
    ((-1, -1), 'mesh.data=-1 and mesh.fsdp=-1'), ((9, 1), 'mesh.data=9 .* 8 '),
    ((-1, 3), 'mesh.fsdp=3 .* 8 '), ((4, 4), 'mesh.data=4 and mesh.fsdp=4')])
def test_sizes_that_do_not_fit(sizes, words):
  with pytest.raises(ValueError, match=words):
    mesh_lib.make_mesh(*sizes)


def test_no_process_is_left_out():
  devices = [types.SimpleNamespace(process_index=i // 2, id=i)
             for i in range(4)]
  with pytest.raises(ValueError, match='mesh.data=2 x mesh.fsdp=1 .* 4 dev'):
    mesh_lib.make_mesh(2, devices=devices)


def test_devices_lie_in_the_mesh_by_process(monkeypatch):
  """As `shard_batch` lays the rows, whatever the order they are found in."""
  devices = jax.devices()
  monkeypatch.setattr(jax, 'devices', lambda: devices[::-1])
  assert mesh_lib.make_mesh().devices.flatten().tolist() == devices


def test_replicate_takes_keys_and_arrays():
  mesh = mesh_lib.make_mesh(4)
  tree = {'key': jax.random.key(7), 'x': np.arange(3.)}
  got = sharded.put(tree, mesh)
  for x in jax.tree.leaves(got):
    assert x.sharding.is_equivalent_to(mesh_lib.replicated(mesh), x.ndim)
  assert jax.random.key_data(got['key']).tolist() == [0, 7]
  assert got['x'].tolist() == [0, 1, 2]


def test_check_batch_size():
  mesh = mesh_lib.make_mesh()
  assert mesh_lib.check_batch_size(24, mesh) == 24
  with pytest.raises(ValueError, match='eval_batch=20 .*16 or 24'):
    mesh_lib.check_batch_size(20, mesh, 'eval_batch')
  with pytest.raises(ValueError, match='batch_size=3 .*8'):
    mesh_lib.check_batch_size(3, mesh)
  with pytest.raises(ValueError, match='batch_size=0'):
    mesh_lib.check_batch_size(0, mesh)


def test_shard_batch_gives_each_device_its_rows():
  mesh = mesh_lib.make_mesh(4)
  batch = {'image': np.arange(8 * 3, dtype=np.uint8).reshape(8, 3),
           'label': np.arange(8)}
  out = mesh_lib.shard_batch(batch, mesh)
  assert out['image'].sharding == mesh_lib.batch_sharding(mesh)
  for i, shard in enumerate(out['image'].addressable_shards):
    np.testing.assert_array_equal(shard.data, batch['image'][2 * i:2 * i + 2])
  back = mesh_lib.fetch(out)
  assert back['image'].dtype == np.uint8
  np.testing.assert_array_equal(back['image'], batch['image'])
  np.testing.assert_array_equal(back['label'], batch['label'])


@pytest.mark.parametrize('leaf, words', [
    (np.zeros((6, 2)), r"global size of batch\['x'\]=6"),
    (np.float32(1), r"batch\['x'\] is the scalar"),
])
def test_shard_batch_names_the_bad_leaf(leaf, words):
  with pytest.raises(ValueError, match=words):
    mesh_lib.shard_batch({'x': leaf}, mesh_lib.make_mesh(4))


def test_fetch_replicated_and_plain():
  mesh = mesh_lib.make_mesh()
  x = jax.device_put(jnp.arange(3.), mesh_lib.replicated(mesh))
  assert x.is_fully_replicated
  out = mesh_lib.fetch({'x': x, 'n': 2})
  assert isinstance(out['x'], np.ndarray) and isinstance(out['n'], np.ndarray)
  np.testing.assert_array_equal(out['x'], [0, 1, 2])
  assert out['n'] == 2


def test_check_finite():
  errors.check_finite(1, {'loss': 1., 'keep': np.ones((2, 3)), 'n': 4,
                          'half': jnp.bfloat16(3)})
  with pytest.raises(errors.NonFiniteError, match='step 7: loss=nan') as e:
    errors.check_finite(7, {'acc': 0.5, 'loss': float('nan')})
  assert (e.value.step, e.value.name) == (7, 'loss')
  assert 'learning_rate' in str(e.value)
  with pytest.raises(FloatingPointError, match='keep'):
    errors.check_finite(7, {'keep': np.array([1, np.inf])})
