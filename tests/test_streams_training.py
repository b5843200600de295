"""The efficient models take steps of every phase, on one device and eight."""

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
import states
import tiny

LEVIT = dict(name='levit_128s', patch_size=2, widths=(8, 6), depths=(1, 1),
             heads=(2, 4), key_dim=4)
CROSSVIT = dict(name='crossvit_9_240', patch_sizes=(2, 3), scales=(1., 0.75),
                widths=(4, 8), depth=1, num_heads=2, mlp_ratio=2., num_stages=2)
SHUFFLE = dict(name='shuffle_tiny_224', patch_size=2, widths=(8, 6),
               depths=(4, 2), heads=(2, 3), window_size=2, kernel_size=3,
               stem_width=4)
VIL = dict(name='vil_tiny_224', patch_sizes=(2, 1), widths=(8, 12),
           depths=(2, 1), heads=(2, 3), windows=(2, 0), num_globals=(1, 0),
           relative=(True, False), random_shift=0.75)
EVO = dict(name='evo_deit_tiny_224', patch_size=2, width=8, depth=4,
           num_heads=2, mlp_ratio=2., num_full=2, stage_length=2,
           layerwise=0.75)
EVO_LEVIT = dict(name='evo_levit_128s', patch_size=2, widths=(8, 6),
                 depths=(1, 2), heads=(2, 4), key_dim=4, num_full=1,
                 layerwise=0.75)
MERGED = dict(name='vit_digits_patch2_8', patch_size=2, width=8, depth=3,
              num_heads=2, mlp_ratio=2., merge=3)
# What a step of the phase leaves as it is.
FROZEN = dict(dense=('policy',), policy=('backbone', 'batch_stats'),
              warm_start=('backbone', 'batch_stats'), joint=(),
              exits=('policy',))


def _config(model, phase):
  config = tiny.get_config()
  config.model.update(patch_size=None, width=None, depth=None)
  config.model.update(num_fixed=0, image_size=8, **model)
  if phase == 'exits':
    config.model.exits = ((1, 'vit'), (2, 'cnn_add'))
  config.phases = tiny.PHASES if phase != 'exits' else (phase,)
  config.nets.tokens = 'pooled'
  config.dense.ema = 0.
  config[phase].update(batch_size=8, warmup=0.)
  return config


def _system(model, phase):
  return system_lib.create(_config(model, phase), tiny.dataset())


def _state(system, phase):
  """A random state, that no program computes; every part matters."""
  rng = np.random.default_rng(0)

  def fill(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if name.startswith('opt_state') or not x.shape:
      return np.zeros(x.shape, x.dtype)
    if '/masks/' in name:
      return np.float32(rng.integers(0, 2, x.shape))
    if name.endswith(('var', 'std')):
      return np.float32(rng.uniform(0.5, 2, x.shape))
    return np.float32(rng.normal(size=x.shape) * 0.3)

  return jax.tree_util.tree_map_with_path(
      fill, step_lib.abstract_state(system, phase))


def _batch():
  train = tiny.dataset().train
  return train.images(np.arange(8)), np.int32(train.labels[:8])


def _check(phase, old, new, metrics):
  new, metrics = jax.device_get((new.params, metrics))
  losses = [x for name, x in metrics.items() if name.endswith('loss')]
  assert losses and np.isfinite(losses).all() and metrics['grad_norm'] > 0
  for name, group in old.params.items():
    # The weights of new scores are not learned while encoders select anew.
    moved = [np.abs(a - b).max() for (path, a), b in zip(
        jax.tree.leaves_with_path(group), jax.tree.leaves(new[name]))
             if path[-1] != jax.tree_util.DictKey('tradeoff')]
    if name in FROZEN[phase]:
      assert not np.any(moved)
    elif name in ('backbone', 'heads', 'batch_stats'):
      # In the joint phase, the policy may drop a layer of all images.
      assert np.any(moved) if phase == 'joint' else np.all(moved), name


@pytest.mark.parametrize('model', [LEVIT, dict(CROSSVIT, num_stages=1)])
def test_a_step_fits_them(model):
  """Nothing is compiled; `nightly` takes the steps."""
  states.check_step(_system(model, 'dense'), 'dense')


# LeViT's step of the dense phase is in the next test.
@pytest.mark.nightly
@pytest.mark.parametrize('model, phase', [
    *((model, 'dense') for model in (CROSSVIT, SHUFFLE, VIL, EVO, EVO_LEVIT)),
    *((model, phase) for model in (LEVIT, CROSSVIT, SHUFFLE, VIL)
      for phase in ('warm_start', 'policy', 'joint', 'exits')),
    # The exits do not train the heads of training alone.
    *((model, phase) for model in (EVO, EVO_LEVIT)
      for phase in ('warm_start', 'policy', 'joint'))])
def test_a_step_of_every_phase(model, phase):
  system = _system(model, phase)
  old = _state(system, phase)
  _check(phase, old, *jax.jit(
      step_lib.make_step(system, phase, 0))(old, *_batch()))


@pytest.mark.nightly
@pytest.mark.parametrize('model', [VIL, EVO_LEVIT])
def test_steps_that_differ_in_time_are_alike_on_eight_devices(model):
  system = _system(model, 'dense')
  old = _state(system, 'dense')
  step = jax.jit(lambda state, images, labels, start: step_lib.make_step(
      system, 'dense', start)(state, images, labels))

  def run(num, done=0):
    mesh = mesh_lib.make_mesh(num)
    state = jax.device_put(old, mesh_lib.replicated(mesh))
    batch = jax.device_put(_batch(), mesh_lib.batch_sharding(mesh))
    return jax.device_get(step(state, *batch, -done)[1])

  one, eight = run(1), run(8)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5), eight, one)
  # The last quarter of the steps has neither a shift nor a selection in each
  # encoder, under the same random numbers.
  losses = [float(run(1, done)['loss'])
            for done in range(system.config.dense.steps)]
  assert abs(losses[-1] - losses[0]) > 1e-4
  assert set(losses) == {losses[0], losses[-1]}


@pytest.mark.nightly
@pytest.mark.parametrize('model', [
    dict(MERGED, depth=2),
    dict(MERGED, merge_every=2, merge_schedule='falling'), EVO])
def test_tokens_are_selected_alike_on_eight_devices(model):
  """The same losses and parameters after two steps, logits in `compact`."""
  system = _system(model, 'dense')
  old, model = _state(system, 'dense'), system.model
  step = jax.jit(step_lib.make_step(system, 'dense', 0))
  compact = jax.jit(lambda params, images, actions: modes.forward(
      model, params, system.normalize(images), actions, mode='compact').total)
  images, labels = _batch()
  rng = np.random.default_rng(0)
  actions = Actions(*(rng.integers(0, 2, (len(images), num))
                      for num in plan.num_layers(model)))

  def run(num):
    mesh = mesh_lib.make_mesh(num)
    state = jax.device_put(old, mesh_lib.replicated(mesh))
    images_here, labels_here, actions_here = jax.device_put(
        (images, labels, actions), mesh_lib.batch_sharding(mesh))
    found = [compact(state.params, images_here, actions_here)]
    for _ in range(2):
      state, metrics = step(state, images_here, labels_here)
      found.append(metrics)
    return jax.device_get(found), jax.tree.map(np.array, state.params)

  (found, params), (want, want_params) = run(8), run(1)
  for p in (params, want_params):
    # No softmax depends on a bias that all keys share: its gradient is
    # rounding, which Adam scales up.
    p['backbone']['encoders']['qkv']['bias'][:, model.width:-model.width] = 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), (found, params), (want, want_params))
  moved = states.differ(want_params['backbone'], old.params['backbone'])
  assert len(moved) == len(jax.tree.leaves(old.params['backbone']))


@pytest.mark.nightly
def test_random_shift_resumes_exactly(tmp_path, monkeypatch):
  config = _config(VIL, 'dense')
  config.phases, config.checkpoint_every = ('dense',), 2
  train = lambda name: loop.Trainer(
      config, str(tmp_path / name), tiny.dataset()).train()
  want = train('whole')
  with monkeypatch.context() as patch:
    asked = iter(range(1, 99))
    patch.setattr(preemption.GracefulStop, 'should_stop',
                  lambda self: next(asked) == 3)
    assert train('stopped') is None
  assert states.differ(train('stopped'), want) == []


@pytest.mark.nightly
@pytest.mark.parametrize('model', [LEVIT, SHUFFLE, EVO_LEVIT])
def test_statistics_of_eight_devices_are_those_of_one(model):
  system = _system(model, 'dense')
  old = _state(system, 'dense')
  step = jax.jit(step_lib.make_step(system, 'dense', 0))

  def run(num):
    mesh = mesh_lib.make_mesh(num)
    state = jax.device_put(old, mesh_lib.replicated(mesh))
    batch = jax.device_put(_batch(), mesh_lib.batch_sharding(mesh))
    state, metrics = step(state, *batch)
    _check('dense', old, state, metrics)
    return state.params['batch_stats'], metrics

  one, eight = run(1), run(8)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5), eight, one)


@pytest.mark.nightly
def test_a_killed_run_of_shuffle_resumes_exactly(tmp_path, monkeypatch):
  system = _system(SHUFFLE, 'dense')
  config = system.config.copy_and_resolve_references()
  config.phases = ('dense', 'joint')
  config.joint.batch_size = 8
  train = lambda name: loop.Trainer(
      config, str(tmp_path / name), tiny.dataset()).train()
  want = train('whole')
  shard, left = mesh_lib.shard_batch, [tiny.STEPS + 5]

  def kill(batch, mesh):
    left[0] -= len(batch[0]) == 8
    if not left[0]:
      raise KeyboardInterrupt
    return shard(batch, mesh)

  with monkeypatch.context() as patch:
    patch.setattr(mesh_lib, 'shard_batch', kill)
    with pytest.raises(KeyboardInterrupt):
      train('killed')
  got = train('killed')
  assert got.step == want.step
  assert not states.differ(got, want)
