"""Runs that tests share, and their states, compared bit for bit."""

import pathlib
import shutil

from adavit_jax.runs import loop
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny


@pytest.fixture(scope='module', autouse=True)
def trace_once():
  """Makes each step once for all runs of a file that imports this fixture."""
  make, made = step_lib.make_step, {}

  def make_once(system, phase, start):
    key = system.config.to_json_best_effort(), phase, start
    if key not in made:
      made[key] = make(system, phase, start)
    return made[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', make_once)
    yield


def devices(count):
  """A fixture: on some of the 8 devices runs compile and save faster."""
  @pytest.fixture(scope='module', autouse=True)
  def few_devices():
    make_mesh = mesh_lib.make_mesh
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(mesh_lib, 'make_mesh', lambda num=count: make_mesh(num))
      yield
  return few_devices


two_devices = devices(2)


@pytest.fixture(scope='module', autouse=True)
def counted_steps():
  """Steps that count and change the model, for files without learning."""
  def make_step(system, phase, start):
    del system, phase, start
    def step(state, images, labels):
      del images, labels
      grow = lambda tree, by: jax.tree.map(lambda x: x * by, tree)
      state = state.replace(
          step=state.step + 1, ema=grow(state.ema, 1.02), params={
              **state.params, 'backbone': grow(state.params['backbone'], 1.01)})
      return state, {'accuracy': 1., 'loss': 1.}
    return step

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', make_step)
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
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


def copy(tree):
  """Copies, so that no step can donate the original."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(
      lambda x: jax.random.clone(x) if is_key(x) else jnp.copy(x), tree)


def same(a, b):
  return jax.tree.map(bits, a) == jax.tree.map(bits, b)


def differ(a, b):
  """Paths of the leaves that are not equal bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
  return [jax.tree_util.keystr(path) for (path, x), y in pairs
          if bits(x) != bits(y)]
