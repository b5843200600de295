"""A run that begins with other people's weights, and their preprocessing."""

import dataclasses
import re
import shutil

import adavit_jax
from adavit_jax import data
from adavit_jax import weights
from adavit_jax.policies import observation
from adavit_jax.runs import loop
from adavit_jax.runs import preemption
from adavit_jax.runs import pretrained
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
import jax
import numpy as np
import pytest
import states
from states import one_device  # a fixture
from test_weights import path as golden
import tiny

EXPECTS = weights.Preprocessing((0.25,), (0.125,), 'bilinear', 0.8)
PARAMS = tiny.params(tiny.model())


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'model.safetensors'
  weights.save(path, tiny.model(), PARAMS, preprocessing=EXPECTS)
  return path


@pytest.fixture(scope='module')
def initial():
  return {}


@pytest.fixture(autouse=True)
def cheap(monkeypatch, initial):
  """Steps that only count, and states that are initialized once."""
  init_state = state_lib.init_state
  def copied(system, seed):
    key = system.model, system.nets
    if key not in initial:
      initial[key] = init_state(system, seed)
    return states.copy(initial[key])
  def make_step(system, phase, start):
    del system, phase, start
    return lambda state, images, labels: (
        state.replace(step=state.step + 1), {'loss': 1.})
  monkeypatch.setattr(step_lib, 'make_step', make_step)
  monkeypatch.setattr(state_lib, 'init_state', copied)


def _trainer(workdir, num_classes=4, **fields):
  config = tiny.get_config()
  config.update_from_flattened_dict({
      'phases': ('dense',), 'dense.steps': 2, 'policy.steps': 1,
      'dense.ema': 0., **fields})
  dataset = tiny.dataset(num_classes)
  # Without held-out images nothing is evaluated, so nothing compiled.
  empty = data.ArraySplit(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0))
  return loop.Trainer(config, str(workdir),
                      dataset=dataclasses.replace(dataset, holdout=empty))


def _equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_policy_phases_begin_with_the_weights(file, tmp_path):
  trainer = _trainer(tmp_path / 'run', phases=('policy',),
                     **{'init.weights': str(file), 'policy.price': 0.7})
  # The statistics of its features are not what is tested here.
  trainer.evaluator.feature_stats = lambda *args: observation.Stats(
      np.zeros(5 * 16), np.ones(5 * 16))
  state = trainer.train()
  assert int(state.step) == 1
  _equal(state.params['backbone'], PARAMS['backbone'])
  _equal(state.teacher, PARAMS)
  np.testing.assert_allclose(np.exp(state.log_price), 0.7, rtol=1e-6)
  assert (trainer.system.mean, trainer.system.std) == ((0.25,), (0.125,))


def test_a_new_head_needs_a_dense_phase(file, tmp_path):
  fields = {'init.weights': str(file)}
  with pytest.raises(ValueError, match=r'\b4 .*\b5\b.*head'):
    _trainer(tmp_path / 'run', 5, phases=('policy',), **fields)
  assert not (tmp_path / 'run').exists()
  got = _trainer(tmp_path / 'run', 5, **fields).train().params['backbone']
  kernel = got.pop('head')['kernel']
  assert kernel.shape == (16, 5) and 0.01 < kernel.std() < 0.03
  _equal(got, {k: v for k, v in PARAMS['backbone'].items() if k != 'head'})


def test_the_file_is_needed_only_once(file, tmp_path, monkeypatch):
  """Stopped, resumed without the file, loaded, and begun from."""
  workdir = tmp_path / 'run'
  fields = {'init.weights': str(file)}
  stops = iter([True, False])
  monkeypatch.setattr(preemption.GracefulStop, 'should_stop',
                      lambda self: next(stops))
  assert _trainer(workdir, **fields).train() is None
  file.unlink()
  assert int(_trainer(workdir, **fields).train().step) == 2
  trainer = _trainer(workdir)
  _equal(trainer.train().params['backbone'], PARAMS['backbone'])

  clf = adavit_jax.load(str(workdir))
  assert (clf.system.mean, clf.system.std) == (EXPECTS.mean, EXPECTS.std)
  for found in (trainer, clf.system,
                _trainer(tmp_path / 'b', **{'init.workdir': str(workdir)})):
    c = found.config.data
    assert (*c.mean, *c.std, c.interpolation, c.crop) == (
        0.25, 0.125, 'bilinear', 0.8)
  with pytest.raises(ValueError, match=re.escape(str(file))):
    _trainer(tmp_path / 'new', **fields)


def test_a_run_prepares_images_as_the_run_that_it_begins_from(tmp_path):
  first = _trainer(tmp_path / 'a')
  assert first.config.data.mean is None and first.train() is not None
  got = _trainer(tmp_path / 'b', **{
      'init.workdir': str(tmp_path / 'a'), 'data.std': (0.3,)}).config.data
  assert got.mean == first.dataset.mean and got.std == (0.3,)
  assert got.crop is None


def test_a_larger_size_of_the_run_before_is_a_crop(monkeypatch):
  source = tiny.get_config()
  source.data.update(image_size=8, load_size=10)
  monkeypatch.setattr(pretrained, '_newest_info', lambda workdir: dict(
      config=source.to_dict(), dataset=dict(mean=(0.5,), std=(0.5,))))
  config = tiny.get_config()
  config.init.workdir = 'DIR'
  assert pretrained.with_preprocessing(config, None).data.crop == 0.8


def test_a_run_without_weights_does_not_take_them_later(file, tmp_path):
  _trainer(tmp_path / 'run').train()
  with pytest.raises(ValueError, match='init.weights=.*--workdir'):
    _trainer(tmp_path / 'run', **{'init.weights': str(file)})


def test_what_the_user_sets_stays(file):
  config = tiny.get_config()
  config.init.weights = str(file)
  config.data.update(mean=(0.1,), load_size=9)
  got = pretrained.with_preprocessing(config, None).data
  assert (got.mean, got.std, got.interpolation) == (
      (0.1,), (0.125,), 'bilinear')
  assert got.crop is None and config.data.std is None


@pytest.mark.parametrize('name, file, mean', [
    ('deit_tiny_patch16_224', 'w/model.safetensors', 0.485),
    ('vit_tiny_patch16_224', 'w/model.safetensors', 0.5),
    ('deit_tiny_patch16_224', 'adavit_1/model.safetensors', 0.485),
    ('vit_tiny_patch16_224', 'w/deit_tiny.safetensors', 0.485),
    ('deit_tiny_patch16_224', 'vit_tiny/model.safetensors', 0.5)])
def test_the_files_name_decides_before_the_models(tmp_path, name, file, mean):
  path = tmp_path / file
  path.parent.mkdir()
  shutil.copy(golden('timm_vit'), path)
  config = tiny.get_config()
  config.model.name, config.init.weights = name, str(path)
  assert pretrained.with_preprocessing(config, None).data.mean[0] == mean


def test_a_policy_of_other_inputs_is_named(tmp_path):
  """Also where the shapes agree: one early answer in the other's place."""
  given = str(tmp_path / 'given')
  _trainer(given, **{'phases': ('dense', 'policy'), 'nets.head': False}).train()
  for fields, flags in (
      ({}, '--config.nets.head=False'),
      ({'nets.aux': False},
       '--config.nets.aux=True --config.nets.head=False')):
    trainer = _trainer(tmp_path / 'other', **{
        'phases': ('joint',), 'init.workdir': given, **fields})
    with pytest.raises(ValueError, match=flags):
      trainer.train()
