"""Runs that tests share, and their states, compared bit for bit."""

import pathlib
import shutil

from adavit_jax.evaluation import evaluator
from adavit_jax.evaluation import exit_evaluator
from adavit_jax.runs import loop
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import step as step_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny


_made = {}  # by all files that a process runs
make_step = step_lib.make_step  # whatever a fixture puts in its place


@pytest.fixture(scope='module', autouse=True)
def trace_once():
  """Makes what is traced or compiled once for all runs of a config."""
  def once(make):
    def made(system, *args, **kwargs):
      key = (make, system.config.to_json_best_effort(), system.model,
             repr((system.mean, system.std, system.target)), *args,
             *kwargs.items())
      if key not in _made:
        _made[key] = make(system, *args, **kwargs)
      return _made[key]
    return made

  with pytest.MonkeyPatch.context() as patch:
    for module, name in ((step_lib, 'make_step'), (evaluator, 'Evaluator'),
                         (step_lib, 'abstract_state'),
                         (exit_evaluator, 'ExitEvaluator')):
      patch.setattr(module, name, once(getattr(module, name)))
    yield


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """On one of the 8 devices runs compile and save faster.

  Runs on several are in test_stranger and test_multihost, their steps in
  test_sharding.
  """
  make_mesh = mesh_lib.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    # For the rest of the devices, -1, as for 1.
    patch.setattr(mesh_lib, 'make_mesh', lambda data=1, fsdp=1, **options: (
        make_mesh(abs(data), fsdp, **options)))
    yield


def check_step(system, phase):
  """Checks that a training step keeps the shapes of the state; runs nothing."""
  model, before = system.model, step_lib.abstract_state(system, phase)
  size = system.config[phase].batch_size
  images = jax.ShapeDtypeStruct(
      (size, *[model.image_size] * 2, model.channels), np.uint8)
  labels = jax.ShapeDtypeStruct((size,), np.int32)
  after, _ = jax.eval_shape(
      make_step(system, phase, 0), before, images, labels)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert kinds(after) == kinds(before), phase


def noise(system, phase, start):
  """In place of a training step: adds noise to what the phase trains."""
  del system, start
  def step(state, images, labels):
    del images, labels
    groups = phases.PHASES[phase].trains
    flat, tree = jax.tree.flatten(
        {k: state.params[k] for k in groups if k in state.params})
    key = jax.random.fold_in(state.key, state.step)
    added = jax.random.normal(key, (max(x.size for x in flat),)) / 5
    moved = tree.unflatten(
        [x + added[:x.size].reshape(x.shape) for x in flat])
    ema = state.ema and jax.tree.map(lambda x: 2 * x, moved)
    return state.replace(
        step=state.step + 1, ema=ema, params={**state.params, **moved}), {
            'accuracy': 1., 'loss': 0.}
  return step


@pytest.fixture(scope='module', params=[
    'noise', pytest.param('trained', marks=pytest.mark.nightly)])
def steps(request, trace_once):
  """Which steps the runs of a file make."""
  with pytest.MonkeyPatch.context() as patch:
    if request.param == 'noise':
      patch.setattr(step_lib, 'make_step', noise)
    yield request.param


@pytest.fixture(scope='module')
def run(steps, tmp_path_factory):
  """(work directory, data) of a run of all phases."""
  workdir = str(tmp_path_factory.mktemp('run'))
  config = tiny.get_config()
  dataset = tiny.dataset()
  assert loop.Trainer(config, workdir, dataset).train() is not None
  return workdir, dataset


def replace(workdir, kind, *, halfway=False):
  """What a training does beside a reader: the newest step becomes the next.

  Args:
    workdir: directory of a run.
    kind: of its checkpoints.
    halfway: whether the old one is deleted in part yet.

  Returns:
    The new step.
  """
  folder = pathlib.Path(workdir, 'checkpoints', kind)
  step = max(int(path.name) for path in folder.iterdir())
  old, new = folder / str(step), folder / str(step + 1)
  if halfway:
    shutil.copytree(old, new)
    shutil.rmtree(old / 'about')
  else:
    old.rename(new)
  return step + 1


def bits(x):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return str(x.dtype), x.shape, np.asarray(x).tobytes()


@jax.jit  # one program
def copy(tree):
  """Copies, so that no step can donate the original."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(
      lambda x: jax.random.clone(x) if is_key(x) else jnp.copy(x), tree)


def same(a, b):
  return jax.tree.map(bits, a) == jax.tree.map(bits, b)


def learned(state):
  """(parameters, averages) of a state, to compare."""
  groups = jax.tree.map(np.array, (state.params, state.ema or {}))
  for each in groups:
    if 'backbone' in each:
      # No softmax depends on a bias that all keys share: its gradient is
      # rounding, which Adam scales up.
      bias = each['backbone']['encoders']['qkv']['bias']
      bias[:, bias.shape[-1] // 3:-(bias.shape[-1] // 3)] = 0
  return groups


def differ(a, b):
  """Paths of the leaves that are not equal bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
  return [jax.tree_util.keystr(path) for (path, x), y in pairs
          if bits(x) != bits(y)]
