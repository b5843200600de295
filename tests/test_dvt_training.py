"""A DVT from its config to a report and a cascade; rows of its table."""

import json
import types

import adavit_jax
from adavit_jax import models
from adavit_jax import report
from adavit_jax import weights
from adavit_jax.exits import confidence
from adavit_jax.models import dvt_from_vit
from adavit_jax.runs import loop
from adavit_jax.runtime import stages
from adavit_jax.train import system as system_lib
import jax
import numpy as np
import pytest
from states import one_device  # a fixture
import tiny


def _config(**fields):
  config = tiny.get_config()
  config.phases = ('exits',)
  config.model.name = 'dvt_cifar_32'
  config.model.patch_size = None  # the field of a ViT
  config.model.update(image_size=8, width=16, depth=1, num_heads=2,
                      grids=(2, 4))
  config.exits.update(steps=30, batch_size=16, learning_rate=2e-2,
                      optimizer='muon', rule='max_probability')
  config.checkpoint_every = 1000
  config.mac_target = 0.6
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def dataset():
  return tiny.dataset()


@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
  """(work directory, trainer, final state)."""
  workdir = str(tmp_path_factory.mktemp('dvt'))
  trainer = loop.Trainer(_config(), workdir, dataset)
  return workdir, trainer, trainer.train()


@pytest.mark.nightly
def test_the_losses_of_both_exits_fall(trained):
  with open(f'{trained[0]}/metrics.jsonl') as f:
    rows = [row for row in map(json.loads, f) if 'exits/loss_0' in row]
  for name in ('exits/loss_0', 'exits/loss_1'):
    values = [row[name] for row in rows]
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
  total, first, second = (rows[-1][f'exits/{name}'] for name in (
      'loss', 'loss_0', 'loss_1'))
  assert total == pytest.approx(first + second, rel=1e-5)


@pytest.mark.nightly
def test_it_is_loaded_as_a_cascade(trained, dataset):
  clf = adavit_jax.load(trained[0])
  images = dataset.test.images(np.arange(8))
  system = trained[1].system
  logits = np.asarray(jax.jit(lambda p, x: stages.exit_logits(
      system.model, p, system.normalize(x)))(clf.params, images))
  sure = np.asarray(confidence.confidences(
      confidence.RULES['max_probability'], logits), np.float64)
  clf.thresholds = np.sort(sure[0])[[3, 4]].mean()
  got = clf(images)
  chosen = confidence.choose(sure, clf.thresholds)
  np.testing.assert_array_equal(got.exit, chosen)
  np.testing.assert_allclose(
      got.logits, logits[chosen, np.arange(8)], rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
def test_its_report_draws_the_papers_curve(trained, dataset, monkeypatch):
  monkeypatch.setattr(loop.data, 'load', lambda *args, **kwargs: dataset)
  result = report.evaluate(trained[0], curve='shares')
  assert len(result['curve']) == 59
  assert [len(row['shares']) for row in result['exits']] == [2, 2]
  assert result['exits'][1]['macs_ratio'] == 1
  with pytest.raises(ValueError, match='^--curve=other'):
    report.evaluate(trained[0], curve='other')


def test_rows_of_the_table_are_overrides():
  data = types.SimpleNamespace(num_classes=10, channels=3, mean=(.5,) * 3,
                               std=(.5,) * 3, target=None)
  def macs(**fields):
    config = tiny.load('configs/cifar10_dvt.py').get_config('cpu')
    config.model.update(fields)
    return system_lib.create(config, data).plain_cost.stages
  both = macs()
  without = macs(reuse_features=False, reuse_relations=False)
  assert without == (*macs(grids=(4,)), *macs(grids=(8,)))
  features, relations = macs(reuse_relations=False), macs(reuse_features=False)
  assert both[0] == without[0] == features[0] == relations[0]
  added = lambda row: row[1] - without[1]
  assert added(both) == added(features) + added(relations)
  assert 0 < added(relations) < added(features)
  # docs/results/dvt.md
  printed = lambda row: [round(float(n) / 1e6, 2) for n in np.cumsum(row)]
  assert printed(macs(grids=(8,))) == [25.99]
  assert [printed(row) for row in (without, features, relations, both)] == [
      [6.88, exit_2] for exit_2 in (32.87, 36.59, 33.5, 37.22)]


def test_the_first_transformer_starts_from_a_vit(dataset, tmp_path):
  """Through a file that the config reads."""
  system = system_lib.create(_config(), dataset)
  vit = models.create(
      'vit_digits_patch2_8', patch_size=4, width=16, depth=1, num_heads=2,
      mlp_ratio=2., num_classes=4, stem='conv', num_fixed=0)
  vit_params, params = tiny.params(vit), tiny.params(system.model)
  joined = dvt_from_vit.with_vit(params, vit_params)
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  logits, want = jax.jit(lambda p, q: (
      system.model.apply({'params': p['backbone']}, x),
      vit.apply({'params': q['backbone']}, x).total))(joined, vit_params)
  np.testing.assert_allclose(logits[0], want, rtol=1e-5, atol=1e-6)
  weights.save(tmp_path / 'a.safetensors', system.model, joined)
  got = weights.load(system.model, tmp_path / 'a.safetensors',
                     jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, got, joined)
  with pytest.raises(ValueError, match='^vit_params: .*encoders'):
    dvt_from_vit.with_vit(params, tiny.params(vit.clone(depth=2)))
  del vit_params['backbone']['norm']
  with pytest.raises(ValueError, match=r"^vit_params: \['norm'\]"):
    dvt_from_vit.with_vit(params, vit_params)
