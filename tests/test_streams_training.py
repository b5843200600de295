"""LeViT and CrossViT learn in every phase, on one device and on eight."""

import json
import pathlib

import adavit_jax
from adavit_jax.runs import loop
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import state as state_lib
from adavit_jax.train import step as step_lib
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
from states import devices
import tiny

two_devices = devices(2)  # a fixture
LEVIT = dict(name='levit_128s', patch_size=2, widths=(8, 6), depths=(1, 1),
             heads=(2, 4), key_dim=4)
CROSSVIT = dict(name='crossvit_9_240', patch_sizes=(2, 3), scales=(1., 0.75),
                widths=(4, 8), depth=1, num_heads=2, mlp_ratio=2., num_stages=2)


def _config(model, *phases):
  config = tiny.get_config()
  config.model.update(patch_size=None, width=None, depth=None)
  config.model.update(num_fixed=0, image_size=8, **model)
  config.nets.tokens = 'pooled'
  config.phases = phases
  config.mac_target = 0.9
  config.num_search = 8
  config.dense.ema = 0.
  for phase in (*phases, 'exits'):
    config[phase].update(steps=2, batch_size=8)
  return config


def _losses(workdir):
  rows = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [value for row in map(json.loads, rows)
          for key, value in row.items() if key.endswith('loss')]


@pytest.mark.parametrize('model', [
    LEVIT, pytest.param(CROSSVIT, marks=pytest.mark.nightly)])
def test_phases_of_a_policy(model, tmp_path):
  dataset = tiny.dataset()
  config = _config(model, *tiny.PHASES)
  state = loop.Trainer(config, str(tmp_path), dataset).train()
  assert np.isfinite(_losses(tmp_path)).all() and len(_losses(tmp_path)) >= 8
  clf = adavit_jax.load(str(tmp_path))
  out = clf(dataset.test.images(np.arange(3)))
  assert out.actions.msa.shape[0] == 3 and np.isfinite(out.logits).all()
  if model is LEVIT:
    stats = state.params['batch_stats']
    # A head of a BatchNorm whose input is constant would keep its statistics.
    assert all(np.abs(x['mean']).max() > 0 for group in stats.values()
               for x in (group.values() if 'mean' not in group else [group]))
    assert clf.params['batch_stats'] is None  # folded


@pytest.mark.parametrize('model', [LEVIT, CROSSVIT])
def test_exits_behind_any_encoder(model, tmp_path):
  config = _config(model, 'exits')
  config.model.exits = ((1, 'vit'), (2, 'cnn_add'))
  loop.Trainer(config, str(tmp_path), tiny.dataset()).train()
  assert np.isfinite(_losses(tmp_path)).all() and _losses(tmp_path)
  clf = adavit_jax.load(str(tmp_path))
  out = clf(tiny.dataset().test.images(np.arange(4)))
  assert np.isfinite(out.logits).all()


def test_statistics_of_eight_devices_are_those_of_one():
  config, dataset = _config(LEVIT, 'dense'), tiny.dataset()
  system = system_lib.create(config, dataset)
  step = jax.jit(step_lib.make_step(system, 'dense', 0))
  images, labels = dataset.train.images(np.arange(8)), dataset.train.labels[:8]

  def run(num):
    mesh = mesh_lib.make_mesh(num)
    state = step_lib.begin_phase(
        system, state_lib.init_state(system, 0), 'dense')
    state = jax.device_put(state, mesh_lib.replicated(mesh))
    batch = jax.device_put((images, labels), mesh_lib.batch_sharding(mesh))
    return step(state, *batch)[0].params['batch_stats']

  one, eight = run(1), run(8)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), eight, one)
  assert np.abs(one['encoders_1']['qkv']['mean']).max() > 0
