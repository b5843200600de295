"""Two processes of two CPU devices each compute what one process would.

The run that they train has a mesh of 2 x 2.
"""

import os
import signal
import socket
import sys
import time
import traceback
import types

import adavit_jax
from adavit_jax.runs import loop
from adavit_jax.train import sharded
from adavit_jax.train import step as step_lib
import jax
import numpy as np
import processes
import pytest
import states
import tiny

B, D = 8, 3


def _batch():
  rng = np.random.default_rng(0)
  return {'x': rng.normal(size=(B, D)).astype(np.float32),
          'y': rng.normal(size=(B,)).astype(np.float32)}


W = np.array([0.5, -1., 2.], np.float32)


def _main(index, port, workdir, worker):
  # The last one counts.
  os.environ['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=2'
  try:
    jax.distributed.initialize(
        f'127.0.0.1:{port}', num_processes=2, process_id=index)
    globals()[worker](index, workdir)
  except Exception:
    traceback.print_exc()
    sys.stderr.flush()
    # An ordinary exit would wait for the other process to leave too.
    os._exit(1)


def _worker(index, workdir):
  """Runs in each process; prints the gradient and what else it saw."""
  from adavit_jax.runs import checkpoints
  from adavit_jax.runs import preemption
  from adavit_jax.train import mesh as mesh_lib
  from adavit_jax.train import resident
  import jax.numpy as jnp

  mesh = mesh_lib.make_mesh()
  assert mesh.size == 4 and jax.local_device_count() == 2
  local = mesh_lib.check_batch_size(B, mesh)
  try:
    mesh_lib.check_batch_size(6, mesh)
  except ValueError as e:
    assert '2 processes with 2 each' in str(e), e
  else:
    raise AssertionError('6 images on 4 devices were accepted')
  rows = slice(index * local, (index + 1) * local)
  batch = mesh_lib.shard_batch(
      jax.tree.map(lambda x: x[rows], _batch()), mesh)
  assert batch['x'].shape == (B, D)

  def loss(w, batch):
    return jnp.mean((batch['x'] @ w - batch['y']) ** 2)

  whole = mesh_lib.replicated(mesh)
  value, grad = jax.jit(jax.value_and_grad(loss), out_shardings=whole)(W, batch)
  print('RESULT', *map(float.hex, map(float, (
      mesh_lib.fetch(value), *mesh_lib.fetch(grad)))))
  try:
    mesh_lib.fetch(batch)
  except ValueError as e:
    assert 'other hosts' in str(e), e
  else:
    raise AssertionError('half of a batch was fetched')

  # Steps on images that every device of both processes holds.
  train = tiny.dataset().train
  held = resident.put(train, mesh)
  rows = np.random.default_rng(1).integers(0, len(train), (3, B))
  count = lambda total, images, labels: (
      total + images.sum(dtype=jnp.int32), {'labels': labels})
  total, metrics = jax.jit(
      resident.several(count, held.shape), out_shardings=whole)(
          np.int32(0), held.images, held.labels,
          resident.put_rows(rows, mesh))
  assert mesh_lib.fetch(total) == train.images(rows.ravel()).sum()
  found = resident.each([mesh_lib.fetch(metrics)])
  assert (np.stack([row['labels'] for row in found])
          == train.labels[rows]).all()

  # Orbax reads the shards, here one in each process.
  pair = jax.sharding.Mesh(
      np.asarray(jax.devices()[::2])[:, None], mesh_lib.AXES)
  local = {'x': jnp.arange(3.), 'key': jax.random.key(0), 'np': np.arange(3.)}
  copies = sharded.put(local, pair)
  assert sharded.put(copies, pair)['x'] is copies['x']
  for x in (copies['x'], copies['np'], jax.random.key_data(copies['key'])):
    shard, = x.addressable_shards
    assert (np.asarray(shard.data) == mesh_lib.fetch(x)).all()

  with preemption.GracefulStop() as stop:
    if index == 1:  # One is asked, both agree, at one time.
      signal.raise_signal(signal.SIGINT)
    calls = 1
    while not stop.should_stop():
      calls += 1
      time.sleep(0.01)
    assert stop.signum == signal.SIGINT  # by which the process will exit
  print('STOPPED', calls)

  with checkpoints.Checkpoints(workdir) as ckpts:
    assert ckpts.save(3, {'grad': grad}, {'at': 3}, metric=0.5) == (
        'best', 'last')
    ckpts.wait()
    assert ckpts.latest() == ('last', 3)
    abstract = {'grad': jax.ShapeDtypeStruct((D,), jnp.float32, sharding=whole)}
    for kind in ('last', 'best'):
      got = ckpts.restore(abstract, kind=kind)['grad']
      assert (mesh_lib.fetch(got) == mesh_lib.fetch(grad)).all()

  fitted = _fitted(index)
  print('FITTED', *map(float.hex, map(float, (
      fitted.price, *np.ravel(fitted.kernel)))))

  _train(workdir + '/run')


def _fitted(index):
  """A value policy fitted to other results in each process."""
  from adavit_jax.models.actions import Actions
  from adavit_jax.policies import value
  from adavit_jax.runs import value_fit
  from adavit_jax.train import state as state_lib
  import jax.numpy as jnp
  rng = np.random.default_rng(index)
  inputs = rng.normal(size=(20, 3)).astype(np.float32)
  success = inputs[:, :2] + 1
  value_fit._success = lambda *_: (inputs, success, None)
  trainer = types.SimpleNamespace(
      dataset=types.SimpleNamespace(holdout=()),
      config=types.SimpleNamespace(num_value=20, num_search=20, mac_target=0.7),
      system=types.SimpleNamespace(
          deciding=lambda _: types.SimpleNamespace(cost=types.SimpleNamespace(
              ratio=lambda masks: jnp.float32([1., 0.5])))))
  masks = Actions(*np.float32([[[1, 1], [0, 1]]] * 2))
  state = state_lib.State(*[None] * 7).replace(params={})
  got = value_fit.fitted(trainer, state, masks).params['value']
  assert value.is_fitted(got)
  return got


def _config():
  config = tiny.get_config()
  config.phases, config.dense.steps = ('dense',), 1
  # Compiles faster.
  config.model.depth, config.dense.nested, config.dense.mask_weight = 2, 0., 0.
  return config


def _total(params):
  """The sum of all magnitudes."""
  return sum(float(abs(x).sum()) for x in params)


def _train(workdir):
  """A whole run of one step on 2 x 2 devices, and resumed ones that find it.

  The state is sharded over the devices of a process, then over both processes.
  """
  from adavit_jax.evaluation import batched
  from adavit_jax.train import mesh as mesh_lib
  config, dataset = _config(), tiny.dataset()
  sharded._SMALLEST = 64
  fetched = []
  for sizes in ((2, 2), (2, 2), (1, 4)):
    config.mesh.update(data=sizes[0], fsdp=sizes[1])
    trainer = loop.Trainer(config, workdir, dataset)
    state = trainer.train()
    assert any(x.sharding.spec for x in jax.tree.leaves(state.opt_state))
    whole = jax.jit(lambda tree: tree, out_shardings=mesh_lib.replicated(
        trainer.mesh))(state.params)
    fetched.append(jax.tree.leaves(mesh_lib.fetch(whole)))
  for again in fetched[1:]:
    for a, b in zip(fetched[0], again):
      assert (a == b).all()
  print('TRAINED', _total(fetched[0]).hex())

  # One process alone, whatever the other one does meanwhile.
  if jax.process_index() == 1:
    clf = adavit_jax.load(workdir)
    device, = jax.tree.leaves(clf.params)[0].devices()
    assert device == jax.local_devices()[0]
    images = dataset.test.images(np.arange(3))
    print('LOADED', *clf(images).labels)

  # Every image with its own label and place, in the order of the split.
  run = jax.jit(lambda images, labels, rows: (labels, images[:, 0, 0, 0], rows),
                out_shardings=mesh_lib.replicated(trainer.mesh))
  train = dataset.train
  labels, pixels, rows = batched.collect(train, run, trainer.mesh, 16)
  assert (labels == train.labels).all()
  assert (rows == np.arange(len(train))).all()
  assert (pixels == train.images(rows)[:, 0, 0, 0]).all()


def _all_phases(index, workdir):
  """All that a run does between steps, on 2 x 2 devices; steps are noise."""
  del index
  sharded._SMALLEST = 64
  step_lib.make_step = states.noise
  config = tiny.get_config()
  config.mesh.fsdp = 2
  config.steps_per_call, config.log_every = 2, 3
  state = loop.Trainer(config, workdir + '/run', tiny.dataset()).train()
  whole = jax.jit(lambda tree: tree, out_shardings=jax.NamedSharding(
      state.key.sharding.mesh, jax.P()))(state.params)
  print('TRAINED', _total(map(np.asarray, jax.tree.leaves(whole))).hex())


def _views(index, workdir):
  """Trains exits on views that a frozen model read, on 2 x 2 devices."""
  del index
  import test_frozen_views
  state = test_frozen_views.of_weights(workdir, f'{workdir}/run')
  print('TRAINED', _total(map(np.asarray, jax.tree.leaves(
      state.params['heads']))).hex())


def _run(worker, directory):
  """What both processes print, and log, when they run a function: two lists."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  both = [processes.Process(directory, _main, i, port, str(directory), worker)
          for i in range(2)]
  until = time.monotonic() + 300
  # One that fails leaves the other waiting at a barrier.
  while (any(p.code is None for p in both) and not any(p.code for p in both)
         and time.monotonic() < until):
    time.sleep(0.05)
  codes = [p.wait(0) for p in both]
  assert codes == [0, 0], '\n'.join(p.out + p.err for p in both)
  return [p.out for p in both], [p.err for p in both]


@pytest.mark.nightly
def test_two_processes_in_all_phases(tmp_path, monkeypatch):
  """End where one process ends."""
  outputs, _ = _run('_all_phases', tmp_path)
  totals = [float.fromhex(line.split()[1]) for out in outputs
            for line in out.splitlines() if line.startswith('TRAINED')]
  monkeypatch.setattr(step_lib, 'make_step', states.noise)
  config = tiny.get_config()
  config.mesh.data = 1
  state = loop.Trainer(config, str(tmp_path / 'one'), tiny.dataset()).train()
  want = _total(map(np.asarray, jax.tree.leaves(state.params)))
  np.testing.assert_allclose(totals, [want] * 2, rtol=1e-5)


@pytest.mark.nightly
def test_two_processes_share_the_views_of_a_frozen_model(tmp_path):
  """And end where one process ends."""
  import test_frozen_views
  test_frozen_views.save_weights(tmp_path)
  state = test_frozen_views.of_weights(tmp_path, tmp_path / 'one')
  want = _total(map(np.asarray, jax.tree.leaves(state.params['heads'])))
  outputs, _ = _run('_views', tmp_path)
  found = [float.fromhex(line.split()[1]) for out in outputs
           for line in out.splitlines() if line.startswith('TRAINED')]
  np.testing.assert_allclose(found, [want] * 2, rtol=1e-5)
  assert not (tmp_path / 'run' / 'table').exists()


def test_two_processes(tmp_path, monkeypatch, caplog):
  outputs, errors = _run('_worker', tmp_path)

  batch = {k: v.astype(np.float64) for k, v in _batch().items()}
  error = batch['x'] @ W - batch['y']
  want = [np.mean(error ** 2), *(2 * error @ batch['x'] / B)]
  for word in ('STOPPED', 'TRAINED', 'FITTED'):
    found = [line for out in outputs for line in out.splitlines()
             if line.startswith(word)]
    assert len(found) == 2 and found[0] == found[1], word
  assert 'LOADED' in outputs[1] and 'LOADED' not in outputs[0]
  lines = [line for out in outputs for line in out.splitlines()
           if line.startswith('RESULT')]
  assert len(lines) == 2 and lines[0] == lines[1]
  got = [float.fromhex(x) for x in lines[0].split()[1:]]
  np.testing.assert_allclose(got, want, rtol=1e-5)

  for error in errors:
    assert ('resumed on 1 x 4 devices of kind cpu in 2 processes, saved on 2 x '
            '2 devices' in error)
  trained, = {line.split()[1] for out in outputs for line in out.splitlines()
              if line.startswith('TRAINED')}
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  config = _config()
  config.mesh.update(data=4, fsdp=2)
  state = loop.Trainer(
      config, str(tmp_path / 'run'), tiny.dataset()).train()
  assert ('resumed on 4 x 2 devices of kind cpu in 1 process, saved on 2 x 2 '
          'devices of kind cpu in 2 processes') in caplog.text
  found = _total(map(np.asarray, jax.tree.leaves(state.params)))
  np.testing.assert_allclose(found, float.fromhex(trained), rtol=1e-6)
