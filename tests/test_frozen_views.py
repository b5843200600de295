"""Heads trained on what a frozen backbone said of augmented views, once."""

import json
import types

from adavit_jax import data
from adavit_jax import weights
from adavit_jax.ahead import forecast
from adavit_jax.ahead import targets
from adavit_jax.models import plan
from adavit_jax.runs import first_state
from adavit_jax.runs import frozen_views
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import stages
from adavit_jax.runtime import stopping
from adavit_jax.train import config as config_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from states import trace_once  # a fixture
from test_exits_regression import _regression
from test_multi_exit_training import _without_holdout
import tiny

NUM, BATCH = 40, 8  # training images of the data; of a batch
NAME = 'classifier_wise'


def _config(views, steps=7, **fields):
  config = tiny.get_config()
  config.phases = (NAME,)
  config.model.update(exits=((1, 'mlp'),), num_fixed=2, merge=1)
  config.mac_target = 0.9
  config.data.crop_padding = 0
  config[NAME].update(steps=steps, batch_size=BATCH, learning_rate=1e-2,
                      views=views)
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def dataset():
  return _without_holdout(tiny.dataset())


def _run(phases, workdir, dataset):
  """A run of a plain model, in which every step adds noise."""
  config = _config(0, **{'phases': phases, 'model.exits': ()})
  config.dense.steps = config.policy.steps = 1
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_step', states.noise)
    loop.Trainer(config, str(workdir), dataset).train()
  return {'init.workdir': str(workdir)}


@pytest.fixture(scope='module')
def plain(dataset, tmp_path_factory):
  """Fields of a config that begins with a plain model."""
  return _run(('dense',), tmp_path_factory.mktemp('plain'), dataset)


@pytest.fixture(scope='module')
def policies(dataset, tmp_path_factory):
  """Fields of a config that begins with a policy behind it."""
  workdir = tmp_path_factory.mktemp('policies')
  return {**_run(('dense', 'policy'), workdir, dataset), 'exits.policy': True}


def _trained(config, workdir, dataset):
  return loop.Trainer(config, str(workdir), dataset).train()


def save_weights(directory):
  """Writes a file of weights of the model of `_config`."""
  config = _config(0, **{'init.weights': 'there'})
  model = system_lib.create(config, tiny.dataset()).model
  weights.save(
      directory / 'plain.safetensors', model, tiny.params(model),
      preprocessing=weights.Preprocessing((0.5,), (0.5,), 'bicubic', 1.))


def of_weights(directory, workdir):
  """The state of a run on two views that begins with these weights."""
  config = _config(2, **AUGMENTED, **{
      'init.weights': f'{directory}/plain.safetensors'})
  return _trained(config, workdir, _without_holdout(tiny.dataset()))


AUGMENTED = {'data.flip': True, 'data.crop_padding': 1}
MIXED = {**AUGMENTED, 'data.mixup': 0.3, 'data.label_smoothing': 0.1}
TWO = {'model.exits': ((1, 'mlp'), (3, 'resmlp'))}


@pytest.mark.parametrize('begins, fields', [
    # Over the end of an epoch, which has 5 steps.
    pytest.param('plain', {f'{NAME}.distill': 0.25},
                 marks=pytest.mark.nightly),
    pytest.param('policies', TWO, marks=pytest.mark.nightly),
    pytest.param('plain', {**MIXED, **TWO, f'{NAME}.steps': 5},
                 marks=pytest.mark.nightly),
    pytest.param('policies', {**AUGMENTED, f'{NAME}.steps': 5,
                              'dtype': 'bfloat16'}, marks=pytest.mark.nightly)])
def test_one_view_gives_the_heads_that_no_view_gives(
    request, dataset, tmp_path, begins, fields):
  """With the same images in the same order, augmented in the same way."""
  fields = {**request.getfixturevalue(begins), **fields}
  none, one = (
      _trained(_config(views, **fields), tmp_path / str(views), dataset)
      for views in (0, 1))
  before = state_lib.init_state(
      system_lib.create(_config(0, **fields), dataset), 0).params['heads']
  assert len(states.differ(one.params['heads'], before)) == len(
      jax.tree.leaves(before))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               none.params['heads'], one.params['heads'])
  assert states.same(none.params['backbone'], one.params['backbone'])
  # All metrics are the same, too.
  a, b = (json.loads((tmp_path / views / 'metrics.jsonl').read_text()
                     .splitlines()[-1]) for views in '01')
  assert a == pytest.approx(b, rel=1e-5) and f'{NAME}/loss_0' in a


@pytest.mark.nightly
def test_a_regression_learns_from_views(tmp_path):
  dataset = _without_holdout(_regression())
  fields = {'exits.rule': 'agreement', 'phases': ('last_exit', NAME),
            'last_exit.steps': 1, 'last_exit.batch_size': BATCH,
            'model.merge': 0,
            f'{NAME}.learning_rate': 1e-3}  # AdamW amplifies rounding
  none, one = (
      _trained(_config(views, **fields), tmp_path / str(views), dataset)
      for views in (0, 1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               none.params['heads'], one.params['heads'])


@pytest.fixture
def fresh(plain, dataset, tmp_path):
  """A function: config fields to (trainer, its first state)."""
  def make(**fields):
    config = _config(2, **{
        **plain, **TWO, **AUGMENTED, f'{NAME}.batch_size': 16,
        'model.merge': 0, **fields})
    trainer = loop.Trainer(config, str(tmp_path), dataset)
    return trainer, first_state.begin(trainer).state
  return make


def test_views_are_what_the_frozen_model_says_of_augmented_images(fresh):
  """Also where a batch has images of two views; on two devices."""
  trainer, state = fresh(**{f'{NAME}.distill': 1., 'mesh.data': 2})
  system, train, size = trainer.system, trainer.dataset.train, 16
  views = frozen_views.read(trainer, state, NAME, 0, None)
  assert len(views) == 2 * NUM

  @jax.jit
  def direct(params, key, images, labels):
    images, targets = data.augment(
        key, images, labels, config_data=trainer.config.data, num_classes=4,
        mean=system.mean, std=system.std, image_size=8)
    model = system.model
    x, tokens = modes.embed(model, params, images).x, []
    for start, stop in ((0, 1), (1, 3)):
      x = masked.run(model, params, x, images, start=start, stop=stop).x
      tokens.append(model.tokens(x, plan.tokens_at(model, stop)))
    return targets, tokens, stages.exit_logits(model, params, images)[-1]

  params = jax.device_get(state.params)
  for step in range(5):
    rows = data.batch_indices(0, step, size=NUM, batch_size=size)
    view = (step * size + np.arange(size)) // NUM
    key = jax.random.split(jax.random.fold_in(jax.device_get(state.key), step))
    targets, (first, second), last = direct(
        params, key[0], train.images(rows), train.labels[rows])
    got = views.images(view * NUM + rows)
    np.testing.assert_array_equal(got.labels, train.labels[rows])
    np.testing.assert_allclose(got.targets, targets, atol=1e-6)
    for a, b in zip([*got.read.tokens, got.read.last],
                    [first[:, :1], second, last], strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_a_head_keeps_only_what_it_reads(fresh):
  trainer, _ = fresh()
  shapes = step_lib.view_shapes(trainer.system, NAME)
  assert [x.shape for x in shapes.read.tokens] == [(16, 1, 16), (16, 5, 16)]
  assert shapes.read.last is None and shapes.images is None


@pytest.mark.nightly
def test_a_forecast_is_of_the_heads_alone(dataset):
  rows = []
  for views in (0, 1):
    config = _config(views, **{'init.workdir': 'there'})
    rows.append(forecast.of_phase(
        system_lib.create(config, dataset), NAME, targets.find('here'),
        mesh_lib.make_mesh()))
  assert 0 < rows[1].flops < rows[0].flops / 2
  assert rows[1].activations < rows[0].activations


@pytest.mark.nightly
def test_a_resumed_run_equals_the_uninterrupted_one(
    plain, dataset, tmp_path, monkeypatch):
  """Stopped among the views, and again among the steps."""
  config = _config(2, **plain, **{'dtype': 'bfloat16', 'data.flip': True})
  monkeypatch.setattr(frozen_views, '_PART', 3)
  whole = _trained(config, tmp_path / 'whole', dataset)
  trainer = loop.Trainer(config, str(tmp_path / 'stopped'), dataset)

  def at(method, call):
    asked = iter(range(1, 1000))
    def run(self):
      stops = next(asked) == call
      if stops and method == 'check':
        raise stopping.Stopped
      return stops
    monkeypatch.setattr(preemption.GracefulStop, method, run)

  at('check', 6)
  assert trainer.train() is None
  table = tmp_path / 'stopped' / 'table'
  kept = {path: path.stat().st_mtime_ns for path in table.iterdir()}
  assert len(kept) == 1  # of four
  at('check', 0)
  at('should_stop', 4)
  assert trainer.train() is None
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert len(list(table.iterdir())) == 4
  monkeypatch.setattr(frozen_views._Outputs, 'rows', None)  # all are on disk
  at('should_stop', 0)
  again = trainer.train()
  assert int(again.step) == 7 and states.differ(again, whole) == []


@pytest.mark.parametrize('value', [-1, True, 2**31])
def test_bad_numbers_of_views(value):
  with pytest.raises(ValueError, match=f'^{NAME}.views={value} '):
    config_lib.check(_config(value))


def test_too_many_views_for_the_memory(
    dataset, tmp_path, monkeypatch):
  config = _config(3, **TWO, **{'init.workdir': 'there', 'model.merge': 0})
  # One token and five tokens of width 16, targets of 4 classes, a label.
  size = 3 * NUM * 4 * (16 + 5 * 16 + 4 + 1)
  monkeypatch.setattr(frozen_views, '_free_memory', lambda: size)
  loop.Trainer(config, str(tmp_path), dataset)
  with monkeypatch.context() as patch:  # another process has less
    patch.setattr(frozen_views.multihost_utils, 'process_allgather',
                  lambda x: ([x[0], x[0] - 1], [x[1], x[1] + 1]))
    with pytest.raises(ValueError, match=f'^{NAME}.views=3 '):
      loop.Trainer(config, str(tmp_path), dataset)
  monkeypatch.setattr(frozen_views, '_free_memory', lambda: 2 * size - 1)
  with monkeypatch.context() as patch:  # another one on the same host
    patch.setattr(frozen_views.multihost_utils, 'process_allgather',
                  lambda x: ([x[0]] * 2, [x[1]] * 2))
    with pytest.raises(ValueError, match=f'^{NAME}.views=3 '):
      loop.Trainer(config, str(tmp_path), dataset)
  monkeypatch.setattr(frozen_views, '_free_memory', lambda: size - 1)
  with pytest.raises(ValueError, match=f'^{NAME}.views=3 .*--config.{NAME}'):
    loop.Trainer(config, str(tmp_path), dataset)


def test_the_limit_of_a_container_counts(tmp_path):
  assert frozen_views._free_in_container(tmp_path) == float('inf')
  for name, text in (('max', '1000'), ('current', '700'),
                     ('stat', 'anon 500\nfile 150\nshmem 30')):
    (tmp_path / f'memory.{name}').write_text(text)
  assert frozen_views._free_in_container(tmp_path) == 420
  (tmp_path / 'memory.max').write_text('max')
  assert frozen_views._free_in_container(tmp_path) == float('inf')


def test_views_that_are_over_need_no_memory(dataset, monkeypatch):
  config = _config(3, **{'model.merge': 0})
  config.phases = (NAME, 'exits')
  system = system_lib.create(config, dataset)
  saved = lambda phase, finished: types.SimpleNamespace(
      info=dict(phase=phase, finished=finished))
  monkeypatch.setattr(frozen_views, '_free_memory', lambda: 0)
  frozen_views.check(system, dataset, saved(NAME, True))
  frozen_views.check(system, dataset, saved('exits', False))
  for left in (None, saved(NAME, False)):
    with pytest.raises(ValueError, match=f'^{NAME}.views=3 '):
      frozen_views.check(system, dataset, left)


def test_views_are_not_repeated():
  config = _config(0, **{'data.repeats': 3})
  assert step_lib.augmentation(config, NAME).repeats == 3
  config[NAME].views = 1
  assert step_lib.augmentation(config, NAME).repeats == 1


def test_phases_with_views_are_those_that_read_a_frozen_model():
  for name, phase in phases.PHASES.items():
    assert ('views' in phase.defaults) == (phase.reads is not None), name
