"""Checkpoints come back bit for bit, or not at all."""

import importlib.util
import os
import resource
import shutil
import signal

from absl import logging
from adavit_jax.runs import checkpoints
from adavit_jax.runs import first_state
from adavit_jax.runs import orbax_manager
from adavit_jax.runs import workdir as workdir_lib
from adavit_jax.train import mesh as mesh_lib
import flax.struct
import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None
  key: jax.Array


def _state(step=1, width=3, ema=True):
  rng = np.random.default_rng(step)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {'dense': {'kernel': jnp.asarray(draw(8, width)),
                      'bias': jnp.asarray([np.nan, -0., 1e-40], 'float32')},
            'half': jnp.asarray(draw(5), jnp.bfloat16)}
  tx = optax.chain(optax.clip_by_global_norm(1.), optax.adamw(1e-3))
  opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype),
                           tx.init(params))
  return State(jnp.int32(step), params, opt_state,
               {'kernel': jnp.asarray(draw(2))} if ema else None,
               jax.random.key(step))


def _abstract(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding or x.sharding), state)


def _bits(x):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return x.shape, str(x.dtype), np.asarray(x).tobytes()


def _assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  assert jax.tree.map(_bits, got) == jax.tree.map(_bits, want)


def test_round_trip_is_bit_exact_on_the_given_shardings(tmp_path):
  mesh = mesh_lib.make_mesh(4)
  whole = mesh_lib.replicated(mesh)
  state = jax.device_put(_state(), whole)
  info = {'phase': 'dense', 'config': {'lr': 0.1, 'layers': [1, 2]}}
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    assert ckpts.latest() is None
    assert ckpts.save(7, state, info) == ('last',)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    assert ckpts.latest() == ('last', 7)
    assert ckpts.info() == info
    got = ckpts.restore(_abstract(state))
    _assert_same(got, state)
    assert all(x.sharding == whole for x in jax.tree.leaves(got))

    # Onto other devices: the kernel split, the rest on the first device.
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    split = mesh_lib.batch_sharding(mesh_lib.make_mesh(8))
    target.params['dense']['kernel'] = jax.ShapeDtypeStruct(
        (8, 3), jnp.float32, sharding=split)
    got = ckpts.restore(target, 7)
    _assert_same(got, state)
    assert got.params['dense']['kernel'].sharding == split
    assert got.step.devices() == {jax.devices()[0]}


def test_saved_state_may_be_donated(tmp_path):
  state = _state()
  want = jax.tree.map(_bits, state)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, state, {})
    abstract = _abstract(state)
    jax.tree.map(lambda x: x.delete(), state)
    assert jax.tree.map(_bits, ckpts.restore(abstract)) == want


@pytest.mark.skipif(
    any(importlib.util.find_spec(n) for n in ('gcsfs', 'tensorflow')),
    reason='a package that opens gs:// is installed')
def test_an_address_is_no_local_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for read_only in (False, True):
    with pytest.raises(
        ValueError, match=r"workdir='gs://bucket/run'.*pip install .*\[gcs\]"):
      checkpoints.Checkpoints('gs://bucket/run', read_only=read_only)
  assert not list(tmp_path.iterdir())


def test_listings_of_a_store_are_not_kept(monkeypatch):
  monkeypatch.setattr(fsspec.config, 'conf', {})
  opened = lambda: fsspec.filesystem('memory', skip_instance_cache=True)
  assert opened().dircache.use_listings_cache
  workdir_lib.fresh_listings('memory://bucket/run')
  assert not opened().dircache.use_listings_cache


def test_what_is_kept(tmp_path):
  with checkpoints.Checkpoints(tmp_path, keep=2) as ckpts:
    for step, metric in enumerate([0.1, 0.9, float('nan'), 0.5, None], 1):
      kinds = ckpts.save(step, {'w': jnp.float32(step)}, {'at': step},
                         pin=step in (2, 5), metric=metric)
      assert kinds == {1: ('best', 'last'), 2: ('best', 'phases'),
                       5: ('phases',)}.get(step, ('last',))
  with checkpoints.Checkpoints(tmp_path, keep=2) as ckpts:
    assert ckpts.steps('last') == (3, 4)
    assert ckpts.steps('phases') == (2, 5)
    assert ckpts.steps('best') == (2,)
    assert ckpts.latest() == ('phases', 5)
    assert ckpts.info(kind='best') == {'at': 2}
    abstract = {'w': jax.ShapeDtypeStruct((), jnp.float32)}
    assert ckpts.restore(abstract, kind='best')['w'] == 2
    assert ckpts.restore(abstract, 3)['w'] == 3
    # The best so far is remembered over a restart.
    assert ckpts.save(6, {'w': jnp.float32(6)}, {}, metric=0.8) == ('last',)
    assert ckpts.save(7, {'w': jnp.float32(7)}, {}, metric=0.95) == (
        'best', 'last')
    ckpts.wait()
    assert ckpts.steps('best') == (7,)


def test_same_step_again(tmp_path):
  abstract = {'w': jax.ShapeDtypeStruct((), jnp.float32)}
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(4, {'w': jnp.float32(0)}, {})
    assert ckpts.save(4, {'w': jnp.float32(1)}, {}) == ()
    assert ckpts.restore(abstract)['w'] == 0
    ckpts.save(9, {'w': jnp.float32(9)}, {})
  # A later run that went back to the start of this one.
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    assert ckpts.save(4, {'w': jnp.float32(2)}, {}) == ('last',)
    assert ckpts.restore(abstract, 4)['w'] == 2
    assert ckpts.steps() == (4, 9)


def test_another_model_is_named(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, _state(), {})
    with pytest.raises(
        ValueError, match=r'(?s)\b3\b.*params/dense/kernel: float32\[8, 3\] '):
      ckpts.restore(_abstract(_state(width=4)))
    with pytest.raises(ValueError, match=r'ema/kernel: float32\[2\] .* absent'):
      ckpts.restore(_abstract(_state(ema=False)))
    bigger = _abstract(_state())
    bigger.params['new'] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(ValueError, match='params/new: absent in'):
      ckpts.restore(bigger)
    wider = _abstract(_state())
    wider.params['half'] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with pytest.raises(ValueError, match=r'params/half: bfloat16\[5\] in'):
      ckpts.restore(wider)


def test_partial_restore(tmp_path):
  state = _state()
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, state, {})
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    abstract = _abstract({'params': state.params})
    _assert_same(ckpts.restore(abstract, partial=True),
                 {'params': state.params})
    with pytest.raises(ValueError, match='step: int32'):
      ckpts.restore(abstract)
    abstract['params']['new'] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(ValueError, match='params/new: absent'):
      ckpts.restore(abstract, partial=True)


def test_read_only(tmp_path):
  with checkpoints.Checkpoints(tmp_path / 'run', read_only=True) as ckpts:
    assert ckpts.latest() is None
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ValueError, match='read_only'):
      ckpts.save(1, {}, {})
  writer = checkpoints.Checkpoints(tmp_path)
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts, writer:
    writer.save(1, {'w': jnp.float32(1)}, {})
    writer.wait()
    assert ckpts.latest() == ('last', 1)


def test_an_applications_own_logs_of_orbax_are_not_hidden(
    tmp_path, caplog, monkeypatch):
  """By a program of ours they are, and only by it."""
  logger = logging.get_absl_logger()
  record = lambda level, file: logger.makeRecord(
      logger.name, level, file, 1, 'Saved.', (), None)
  orbax = '/orbax/checkpoint/checkpoint_manager.py'
  seen = record(20, orbax)
  assert logger.filter(seen)
  with checkpoints.Checkpoints(tmp_path, read_only=True):
    assert logger.filter(seen)
  assert not caplog.text  # what Orbax warns of is what was asked for
  monkeypatch.setattr(logger, 'filters', [])
  orbax_manager.quiet_orbax()
  assert not logger.filter(seen)
  assert logger.filter(record(30, orbax))
  assert logger.filter(record(20, '/application.py'))


def test_bad_arguments(tmp_path):
  with pytest.raises(ValueError, match='keep=0'):
    checkpoints.Checkpoints(tmp_path, keep=0)
  with pytest.raises(ValueError, match='alone=True'):
    checkpoints.Checkpoints(tmp_path, alone=True)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    with pytest.raises(ValueError, match='^info '):
      ckpts.save(1, {'w': jnp.float32(1)}, {'loss': jnp.float32(1)})
    with pytest.raises(ValueError, match="kind='old'"):
      ckpts.steps('old')
    with pytest.raises(FileNotFoundError, match="'last'"):
      ckpts.info()
    with pytest.raises(FileNotFoundError, match=r"\b3\b.*'best'"):
      ckpts.restore({}, 3, 'best')


def _killed(workdir):
  ckpts = checkpoints.Checkpoints(workdir)
  ckpts.save(1, {'w': jnp.full((8, 2**20), 1.)}, {'at': 1})
  ckpts.wait()
  # 32 MB take far longer to write than the kill takes to come.
  ckpts.save(2, {'w': jax.random.normal(jax.random.key(0), (8, 2**20))}, {})
  os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.nightly
def test_killed_while_saving(tmp_path):
  process = processes.Process(tmp_path, _killed, str(tmp_path))
  assert process.wait() == -signal.SIGKILL, process.err
  last = tmp_path / 'checkpoints' / 'last'
  assert len(list(last.iterdir())) == 2  # Step 1, and what is left of step 2.
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    assert ckpts.latest() == ('last', 1)
    assert ckpts.info() == {'at': 1}
    abstract = {'w': jax.ShapeDtypeStruct((8, 2**20), jnp.float32)}
    np.testing.assert_array_equal(ckpts.restore(abstract)['w'], 1)
    ckpts.save(2, {'w': jnp.full((8, 2**20), 3.)}, {'at': 2})
    ckpts.wait()
    assert ckpts.steps() == (1, 2)
    np.testing.assert_array_equal(ckpts.restore(abstract)['w'], 3)
  assert sorted(p.name for p in last.iterdir()) == ['1', '2']


def test_unfinished_directory_is_ignored(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.float32(1)}, {})
  partial = tmp_path / 'checkpoints' / 'last' / '5.orbax-checkpoint-tmp'
  (partial / 'state').mkdir(parents=True)
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 1)


def _without_state(step):
  shutil.rmtree(step / 'state')


def _without_info(step):
  shutil.rmtree(step / 'info')


def _empty_info(step):
  (step / 'info' / 'metadata').write_text('')


def _empty(step):
  shutil.rmtree(step)
  step.mkdir()


@pytest.mark.parametrize('spoil', [
    _without_state, _empty_info,
    *(pytest.param(spoil, marks=pytest.mark.nightly)
      for spoil in (_without_info, _empty))])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path, caplog, spoil):
  tree = lambda value: {'w': jnp.full(8, value)}
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    for step in (1, 2):
      ckpts.save(step, tree(float(step)), {'at': step}, metric=float(step))
  last, best = (tmp_path / 'checkpoints' / kind / '2'
                for kind in ('last', 'best'))
  spoil(last)
  spoil(best)
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 1) and ckpts.info() == {'at': 1}
    np.testing.assert_array_equal(
        ckpts.restore(jax.eval_shape(lambda: tree(0.)))['w'], 1)
  ours = [line for line in caplog.messages if 'is incomplete' in line]
  assert [str(last) in line for line in ours].count(True) == 1
  with checkpoints.Checkpoints(tmp_path) as ckpts:  # which trains it again
    ckpts.save(2, tree(3.), {'at': 2}, metric=0.)
    ckpts.wait()
    np.testing.assert_array_equal(
        ckpts.restore(jax.eval_shape(lambda: tree(0.)))['w'], 3)
  for step in (1, 2):
    _empty(tmp_path / 'checkpoints' / 'last' / str(step))
  shutil.rmtree(best)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    with pytest.raises(ValueError, match=str(tmp_path)):
      ckpts.latest()


def _flip(step):
  for path in step.rglob('d/*'):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(step):
  for path in step.rglob('d/*'):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize('spoil', [_flip, _truncate])
def test_damaged_arrays_do_not_load(tmp_path, spoil):
  # Of a size that is stored in a file of its own, without a checksum.
  tree = lambda step: {'w': jax.random.normal(jax.random.key(step), (2**16,)),
                       'key': jax.random.key(step)}
  abstract = jax.eval_shape(lambda: tree(0))
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    for step in (1, 2):
      ckpts.save(step, tree(step), {})
  last = tmp_path / 'checkpoints' / 'last' / '2'
  spoil(last)
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    with pytest.raises(checkpoints.Damaged, match=str(last)):
      ckpts.restore(abstract)
    ckpts.discard('last', 2)
    assert ckpts.latest() == ('last', 1)
    _assert_same(ckpts.restore(abstract), tree(1))
    ckpts.save(2, tree(3), {})
    assert ckpts.latest() == ('last', 2)
    _assert_same(ckpts.restore(abstract), tree(3))


def test_the_metric_of_a_damaged_best_checkpoint_does_not_count(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.ones(3)}, {}, metric=0.9)
    ckpts.discard('best', 1)
    assert ckpts.save(2, {'w': jnp.ones(3)}, {}, metric=0.5) == (
        'best', 'last')


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    tmp_path, caplog, monkeypatch):
  tree = lambda step: {'w': jnp.full(2**16, float(step))}
  abstract = jax.eval_shape(lambda: tree(0))
  monkeypatch.setattr(
      first_state, '_restored', lambda trainer, ckpts, kind, step: (
          step, ckpts.restore(abstract, step, kind)))
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    for step in (1, 2, 3):
      ckpts.save(step, tree(step), {}, metric=float(step))
  for kind, step in (('last', 3), ('best', 3), ('last', 2)):
    _flip(tmp_path / 'checkpoints' / kind / str(step))
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    step, got = first_state.resume(None, ckpts)
  assert step == 1 and (got['w'] == 1).all()
  for name in ('last/3', 'best/3', 'last/2'):
    assert f'{tmp_path}/checkpoints/{name}' in caplog.text


def test_a_flipped_byte_in_what_describes_a_checkpoint(tmp_path, caplog):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    for step in (1, 2):
      ckpts.save(step, {'w': jnp.ones(3)}, {'config': {'lr': 0.125}})
  path = tmp_path / 'checkpoints' / 'last' / '2' / 'info' / 'metadata'
  path.write_text(path.read_text().replace('0.125', '0.625'))
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 1)
  assert 'info' in caplog.text


def test_info_may_have_numbers_as_keys(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.ones(3)}, {2: 'a', 10: 'b'})
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.info() == {'2': 'a', '10': 'b'}


def test_a_finished_phase_replaces_what_a_stop_saved_at_its_last_step(tmp_path):
  abstract = jax.eval_shape(lambda: {'w': jnp.zeros(3)})
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.zeros(3)}, {'due': True})
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.restore(abstract, 1)
    ckpts.save(1, {'w': jnp.ones(3)}, {}, pin=True)
    assert ckpts.latest() == ('phases', 1)
    # The state that the next phase begins with.
    ckpts.save(1, {'w': jnp.full(3, 2.)}, {})
    assert ckpts.latest() == ('last', 1)
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert (ckpts.restore(abstract, *reversed(ckpts.latest()))['w'] == 2).all()


def test_missing_arrays_are_named_by_their_path(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.zeros(8)}, {})
  state = tmp_path / 'checkpoints' / 'last' / '1' / 'state'
  for path in state.rglob('d/*'):
    path.unlink()
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    with pytest.raises(ValueError, match='last/1'):
      ckpts.restore({'w': jax.ShapeDtypeStruct((8,), jnp.float32)})


def test_a_deleted_directory_is_not_made_again(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as ckpts:
    ckpts.save(1, {'w': jnp.ones(3)}, {})
    ckpts.wait()
    shutil.rmtree(tmp_path / 'checkpoints')
    with pytest.raises(ValueError, match=str(tmp_path)):
      ckpts.save(2, {'w': jnp.ones(3)}, {})
  assert not (tmp_path / 'checkpoints').exists()


def _fails_to_save(workdir):
  with checkpoints.Checkpoints(workdir) as ckpts:
    ckpts.save(1, {'w': jnp.ones(2)}, {})
    ckpts.wait()
    # As if the disk were full: files of arrays cannot grow to this size.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    try:
      ckpts.save(2, {'w': jax.random.normal(jax.random.key(0), (2**18,))}, {})
      ckpts.wait()
    except ValueError as error:
      print(error)


def test_a_save_that_fails_is_an_error_and_the_process_ends(tmp_path):
  process = processes.Process(tmp_path, _fails_to_save, str(tmp_path))
  assert process.wait() == 0, process.err
  assert f'{tmp_path}/checkpoints/last cannot be written' in process.out
  with checkpoints.Checkpoints(tmp_path, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 1)


def test_a_save_that_fails_does_not_keep_the_lease(tmp_path, monkeypatch):
  ckpts = checkpoints.Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    def fail():
      raise OSError('no space left')
    patch.setattr(ckpts._managers['last'], 'close', fail)
    with pytest.raises(ValueError, match='no space left'):
      ckpts.close()
  with checkpoints.Checkpoints(tmp_path):
    pass
  ckpts.close()


def test_a_home_directory_is_expanded_and_no_directory_refused(
    tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  with checkpoints.Checkpoints('~/run') as ckpts:
    assert ckpts.directory == tmp_path / 'run' / 'checkpoints'
  for workdir in ('', '~nobody-of-this-name/run'):
    with pytest.raises(ValueError, match='workdir'):
      checkpoints.Checkpoints(workdir)
