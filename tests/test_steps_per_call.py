"""Several steps in one program: the steps, lines and checkpoints of one by one.
"""

import json
import pathlib

from adavit_jax import data
from adavit_jax.evaluation import validate
from adavit_jax.runs import checkpoints
from adavit_jax.runs import due
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import resident
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

STEPS = 17


def _calls(config, done=0):
  """Where the calls of the dense phase end, from a step on."""
  ends = []
  while done < config.dense.steps:
    done += due.steps_ahead(config, 'dense', done)
    ends.append(done)
  return ends


@pytest.mark.parametrize('most, log, validate, save, steps', [
    (10, 50, 500, 500, 1000), (4, 6, 9, 100, 17), (7, 5, 100, 100, 12),
    (100, 100, 100, 100, 30), (3, 1, 4, 6, 8), (1, 5, 5, 5, 9)])
def test_no_call_passes_over_what_is_due(most, log, validate, save, steps):
  config = tiny.get_config()
  config.update(steps_per_call=most, log_every=log, eval_every=validate,
                checkpoint_every=save)
  config.dense.steps = steps
  ends = _calls(config)
  nothing = (False,) * 6
  assert set(ends) >= {
      done for done in range(1, steps + 1)
      if due.after(config, 'dense', done, False) != nothing}
  lengths = set(np.diff([0, *ends]))
  assert ends[-1] == steps and lengths <= {
      1, min(most, log, validate, save, steps)}
  # A run goes on as it would have, wherever it stopped.
  for i, end in enumerate(ends):
    assert _calls(config, end) == ends[i + 1:]


def _step(system, phase, start):
  """A step of state, key and batch that compiles in no time."""
  noise = states.noise(system, phase, start)
  def step(state, images, labels):
    assert images.shape == (8, 8, 8, 1) and images.dtype == np.uint8
    seen = jnp.float32(images[:, 2, 5, 0]) @ jnp.arange(8.) + labels[3]
    state, metrics = noise(state, images, labels)
    return state.replace(params=jax.tree.map(
        lambda x: x + jnp.float32(seen) / 1000, state.params)), {
            **metrics, 'seen': seen, 'each': jnp.stack([seen, -seen])}
  return step


def _config(steps_per_call, sizes=(1, 1)):
  config = tiny.get_config()
  config.update(phases=('dense',), steps_per_call=steps_per_call, log_every=6,
                eval_every=9, checkpoint_every=12)
  config.model.depth = 2
  config.mesh.update(data=sizes[0], fsdp=sizes[1])
  config.dense.update(steps=STEPS, batch_size=8)
  return config


def _found(workdir):
  """The lines of metrics.jsonl, and what was saved when."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  with checkpoints.Checkpoints(workdir, read_only=True) as ckpts:
    saved = {kind: ckpts.steps(kind) for kind in ('phases', 'last', 'best')}
  return [json.loads(line) for line in lines], saved


@pytest.fixture(scope='module', autouse=True)
def cheap():
  """Steps and validations that compile in no time."""
  def score(trainer, state, phase):
    del trainer, phase
    total = sum(float(x.sum()) for x in jax.tree.leaves(state.params))
    return -int(state.step), {'total': total}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', _step)
    patch.setattr(validate, 'validate', score)
    yield


@pytest.fixture(scope='module')
def one_by_one(tmp_path_factory):
  """(state, lines, checkpoints) of a run of single steps on one device."""
  workdir = tmp_path_factory.mktemp('one')
  state = loop.Trainer(_config(1), str(workdir), tiny.dataset()).train()
  return state, *_found(workdir)


def test_a_run_is_that_of_single_steps(one_by_one, tmp_path, monkeypatch):
  """Bit for bit, also when it stops between two calls and goes on."""
  want, *found = one_by_one
  trainer = loop.Trainer(_config(4), str(tmp_path / 'a'), tiny.dataset())
  got = trainer.train()
  assert states.differ(got, want) == []
  assert list(_found(tmp_path / 'a')) == found

  trainer.workdir = str(tmp_path / 'b')
  asks = iter(range(99))
  with monkeypatch.context() as patch:
    patch.setattr(preemption.GracefulStop, 'should_stop',
                  lambda self: next(asks) == 1)
    assert trainer.train() is None
  with checkpoints.Checkpoints(trainer.workdir, read_only=True) as ckpts:
    assert ckpts.latest() == ('last', 5)  # calls end at 4, 5, 6
  assert states.differ(trainer.train(), want) == []


@pytest.mark.nightly
def test_on_eight_devices(one_by_one, tmp_path, monkeypatch):
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  want, lines, saved = one_by_one
  trainer = loop.Trainer(_config(4, (4, 2)), str(tmp_path), tiny.dataset())
  got = trainer.train()
  _close(got.params, want.params)
  assert any(x.sharding.spec for x in jax.tree.leaves(got.params))
  assert trainer.resident.images.sharding.is_fully_replicated
  found, when = _found(tmp_path)
  assert when == saved
  assert [set(line) for line in found] == [set(line) for line in lines]
  for line, other in zip(found, lines):
    _close(line, other, rtol=1e-5)


def _close(got, want, rtol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=rtol, atol=1e-6), got, want)


@pytest.mark.nightly
@pytest.mark.parametrize('phase', ['dense', 'policy', 'joint', 'exits'])
@pytest.mark.parametrize('sizes', [(1, 1), (8, 1), (4, 2), (1, 8)])
def test_ten_steps_in_one_program(sizes, phase, monkeypatch):
  """Of real training on digits, with crops and mixed images, on any mesh."""
  monkeypatch.setattr(sharded, '_SMALLEST', 64)
  config = tiny.get_config()
  dataset = data.load(config.data)
  train = dataset.train
  config.phases, config.model.depth = (phase,), 2
  config.data.mixup, config[phase].steps = 0.4, 10
  config.dense.update(nested=0., mask_weight=0.)  # compiles faster
  system = system_lib.create(config, dataset)
  mesh = mesh_lib.make_mesh(*sizes)
  step = states.make_step(system, phase, 0)
  held = resident.put(train, mesh)
  rows = np.stack([data.batch_indices(0, i, size=len(train), batch_size=8)
                   for i in range(10)])

  def begin():
    state = sharded.put(state_lib.init_state(system, 0), mesh)
    state = state.replace(teacher=jax.tree.map(
        jnp.copy, state_lib.model_params(state.params)))
    return step_lib.begin_phase(system, state, phase, mesh)

  one, want = begin(), []
  run = step_lib.jitted(step, one, mesh)
  for i in range(10):
    one, metrics = run(one, *mesh_lib.shard_batch(
        (train.images(rows[i]), train.labels[rows[i]]), mesh))
    want.append(metrics)
  all_ten = begin()
  all_ten, metrics = step_lib.jitted(
      resident.several(step, held.shape), all_ten, mesh)(
          all_ten, held.images, held.labels, resident.put_rows(rows, mesh))
  for x, sharding in zip(*map(jax.tree.leaves, (
      all_ten, sharded.shardings(all_ten, mesh)))):
    assert x.sharding.is_equivalent_to(sharding, x.ndim)
  _close(states.learned(all_ten), states.learned(one))
  _close(resident.each([jax.device_get(metrics)]), jax.device_get(want))


def test_images_that_are_not_in_memory_are_refused(tmp_path, monkeypatch):
  dataset = tiny.dataset()
  monkeypatch.setattr(type(dataset.train), 'lazy', True)
  with pytest.raises(ValueError, match='^steps_per_call=10.*steps_per_call=1'):
    loop.Trainer(_config(10), str(tmp_path), dataset)
  loop.Trainer(_config(1), str(tmp_path), dataset)


def test_views_are_refused():
  config = _config(10)
  config.classifier_wise.views, config.phases = 2, ('dense', 'classifier_wise')
  with pytest.raises(ValueError, match='^steps_per_call=10.*views=2'):
    resident.check(config, tiny.dataset().train)


def test_less_than_one_step_is_refused():
  config = _config(0)
  with pytest.raises(ValueError, match='^steps_per_call=0'):
    config_lib.check(config)
