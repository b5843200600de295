"""Exported programs: the same numbers, without the model's code."""

import functools
import json
import runpy
import subprocess

from adavit_jax import cascade_classifier
from adavit_jax import classifier
from adavit_jax import deploy
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.models import stages as stages_lib
from adavit_jax.models.actions import Actions
from adavit_jax.train import system as system_lib
import jax
from jax import export as jax_export
import numpy as np
from PIL import Image
import pytest
import tiny

CPU = ('cpu',)
CLOSE = dict(rtol=1e-5, atol=1e-5)
MASK = Actions.from_keep(np.float32([1, 0, 1, 0, 0, 1]))


@functools.cache
def _made():
  system = system_lib.create(tiny.get_config(), tiny.dataset())
  state = system_lib.init_state(system, 0)
  rng = np.random.default_rng(1)
  policy = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32),
                        state.params['policy'])
  return system, state.replace(
      params={'vit': tiny.params(system.model), 'policy': policy})


def _make(actions=None):
  return classifier.Classifier(
      *_made(), actions=actions, class_names=('ant', 'bee', 'cat', 'dog'),
      max_batch_size=8)


@pytest.fixture(scope='module')
def clf():
  return _make()


@pytest.fixture(scope='module')
def fixed():
  return _make(MASK)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)


def _read(path):
  return jax_export.deserialize(bytearray(path.read_bytes()))


def _conditionals(exported):
  text = exported.mlir_module()
  return text.count('stablehlo.case') + text.count('stablehlo.if')


@pytest.fixture(scope='module')
def cond(clf, tmp_path_factory):
  path = tmp_path_factory.mktemp('cond') / 'model'
  deploy.export(clf, path, mode='cond', platforms=CPU)
  return path


def test_cond_equals_the_classifier_and_keeps_its_conditionals(
    clf, cond, images):
  exported = _read(cond)
  assert exported.in_avals[0].shape == (1, 8, 8, 1)
  # The encoders are one loop: a conditional for each of MSA and MLP.
  assert _conditionals(exported) == 2
  kept = set()
  for threshold in (0.5, 0.9):
    for image in images[:4]:
      logits, keep = exported.call(image[None], np.float32(threshold))
      clf.threshold = threshold
      want = clf(image[None])
      np.testing.assert_allclose(logits, want.logits, **CLOSE)
      np.testing.assert_array_equal(keep, want.actions.keep)
      kept.add(tuple(np.asarray(keep)[0]))
  clf.threshold = 0.5
  assert len(kept) > 2


def test_compact_equals_the_classifier(clf, images, tmp_path):
  deploy.export(clf, tmp_path / 'a', mode='compact', batch_size=4,
                platforms=CPU)
  exported = _read(tmp_path / 'a')
  # One loop over the encoders, in it those over passes: of all tokens and of
  # prefix tokens for MSA and for MLP, one of full passes and one of the last,
  # which chooses between sizes.
  assert exported.mlir_module().count('stablehlo.while') == 1 + 2 * 4
  assert _conditionals(exported) == 4
  for threshold in (0.5, 0.9):
    logits, keep = exported.call(images[:4], np.float32(threshold))
    clf.threshold = threshold
    want = clf(images[:4])
    np.testing.assert_allclose(logits, want.logits, **CLOSE)
    np.testing.assert_array_equal(keep, want.actions.keep)
  clf.threshold = 0.5


def test_static_takes_any_number_of_images(fixed, images, tmp_path):
  deploy.export(fixed, tmp_path / 'a', mode='static', platforms=CPU)
  exported = _read(tmp_path / 'a')
  want = fixed(images)
  for num in (1, 3, 8):
    logits, keep = exported.call(images[:num])
    np.testing.assert_allclose(logits, want.logits[:num], **CLOSE)
    np.testing.assert_array_equal(keep, np.tile(MASK.keep, (num, 1)))


def test_dense_runs_every_layer(clf, images, tmp_path):
  deploy.export(clf, tmp_path / 'a', mode='dense', batch_size=3)
  exported = _read(tmp_path / 'a')
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  assert exported.in_avals[0].shape == (3, 8, 8, 1)
  logits, keep = exported.call(images[:3])
  x = clf.system.normalize(images[:3])
  want = jax.jit(clf.system.model.apply)({'params': clf.params['vit']}, x)
  np.testing.assert_allclose(logits, want.total, **CLOSE)
  np.testing.assert_array_equal(keep, 1)


@pytest.fixture(scope='module')
def cascade():
  config = tiny.get_config()
  config.model.update(
      name='ravit_cifar_patch4_32', image_size=16, width=16, depth=None,
      num_heads=2, layers=(1, 1), patch_size=4)
  config.data.update(image_size=16, mean=(0.4,), std=(0.3,))
  system = system_lib.create(config, tiny.dataset())
  state = system_lib.init_state(system, 0)
  state = state.replace(params={'vit': tiny.params(system.model)})
  return cascade_classifier.CascadeClassifier(system, state, max_batch_size=3)


@pytest.fixture(scope='module')
def small():
  """Images of the cascade's size."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)


@pytest.fixture(scope='module')
def at_exits(cascade, small):
  """[E, B, K] logits."""
  run = jax.jit(stages_lib.exit_logits, static_argnums=0)
  return np.asarray(run(cascade.system.model, cascade.params['vit'],
                        cascade.system.normalize(small)))


@pytest.fixture(scope='module')
def stages(cascade, at_exits, tmp_path_factory):
  """The directory of a cascade that 2 of 5 images leave early."""
  first = np.sort(confidence_lib.negative_entropy(at_exits[0]))
  cascade.thresholds = float(first[2:4].mean())
  path = tmp_path_factory.mktemp('stages')
  deploy.export_stages(cascade, path, platforms=CPU)
  return path


def test_each_stage_of_a_cascade(stages, small, at_exits):
  first, second = (_read(stages / f'stage_{i}') for i in range(2))
  carry, logits = first.call(small)
  np.testing.assert_allclose(logits, at_exits[0], **CLOSE)
  np.testing.assert_allclose(second.call(small, carry)[1], at_exits[1], **CLOSE)
  assert np.abs(at_exits[1] - at_exits[0]).max() > 0.01
  about = json.loads((stages / 'stage_1.json').read_text())
  assert (about['stage'], about['num_stages'], about['rule']) == (
      1, 2, 'entropy')
  assert about['images']['size'] == 16


def test_a_cascade_and_a_classifier_are_exported_differently(
    cascade, clf, tmp_path):
  with pytest.raises(ValueError, match='this model has exits; export its'):
    deploy.export(cascade, tmp_path / 'a', mode='cond')
  with pytest.raises(ValueError, match='has no stages'):
    deploy.export_stages(clf, tmp_path / 'a')


@pytest.mark.parametrize('name', ['params', 'system', 'threshold'])
def test_what_calls_of_a_cascade_would_ignore_cannot_be_set(cascade, name):
  with pytest.raises(AttributeError):
    setattr(cascade, name, None)


@pytest.mark.parametrize('size', [0, -1, 2.5])
def test_wrong_batch_size_of_a_cascade(cascade, size):
  with pytest.raises(ValueError, match=f'max_batch_size={size} must be'):
    cascade_classifier.CascadeClassifier(
        cascade.system, None, max_batch_size=size)


def test_the_example_runs_it_without_the_models_code(clf, cond, tmp_path):
  pixels = np.random.default_rng(2).integers(0, 256, (12, 9), dtype=np.uint8)
  path = tmp_path / 'a.png'
  Image.fromarray(pixels).save(path)
  code = ('import runpy, sys; sys.argv = sys.argv[1:]; '
          'runpy.run_path(sys.argv[0], run_name="__main__"); '
          'print(sorted({m.split(".")[0] for m in sys.modules} & '
          '{"adavit_jax", "flax", "ml_collections"}))')
  process = subprocess.run(**tiny.command(
      '-c', code, f'{tiny.ROOT}/examples/run_exported.py', str(cond),
      str(path)), timeout=120)
  assert process.returncode == 0, process.stderr[-2000:]
  line, modules = process.stdout.splitlines()
  small = Image.fromarray(pixels).resize((8, 11), Image.Resampling.BICUBIC)
  got = clf(np.asarray(small)[None, 1:9, :, None])
  name = clf.class_names[got.labels[0]]
  share = f'{got.actions.keep.mean():.0%}'
  assert line == (f'{path}: {name} ({got.logits.max():.3f}), {share} of the '
                  f'adaptive layers ran')
  assert modules == '[]'


@pytest.mark.parametrize('batch_size', [None, 2])
def test_the_example_stops_at_the_exit_that_is_sure(
    cascade, stages, small, at_exits, tmp_path, capsys, batch_size):
  if batch_size:
    stages = tmp_path / 'a'
    deploy.export_stages(
        cascade, stages, batch_size=batch_size, platforms=CPU)
  files = [str(tmp_path / f'{i}.png') for i in range(5)]
  for file, image in zip(files, small):
    Image.fromarray(image[..., 0]).save(file)
  example = runpy.run_path(f'{tiny.ROOT}/examples/run_exported.py')
  example['main'](str(stages), *files)
  confidence = confidence_lib.confidences(
      confidence_lib.RULES['entropy'], at_exits)
  chosen = confidence_lib.choose(confidence, cascade.thresholds)
  assert chosen.sum() == 3
  macs = np.cumsum(cascade.system.cost.stages)
  assert capsys.readouterr().out.splitlines() == [
      f'{file}: {y[k].argmax()} ({y[k].max():.3f}), exit {k} of 0 to 1, '
      f'{macs[k]:.3g} MACs'
      for file, y, k in zip(files, at_exits.swapaxes(0, 1), chosen)]


@pytest.mark.parametrize('mode', ['dense', 'static'])
def test_the_script_refuses_a_threshold_without_a_policy(tmp_path, mode):
  process = subprocess.run(**tiny.command(
      f'{tiny.ROOT}/export.py', f'--workdir={tmp_path}', f'--mode={mode}',
      f'--output={tmp_path}/a', '--threshold=0.3'), timeout=120)
  assert process.returncode == 1
  assert process.stderr.splitlines()[-1] == (
      f'error: --threshold=0.3 has no part in --mode={mode}, which asks no '
      f'policy: leave it out, or give --mode=cond, compact or stages')


def test_what_lies_beside_an_artefact(cond):
  about = json.loads((cond.parent / 'model.json').read_text())
  assert about == dict(
      mode='cond', class_names=['ant', 'bee', 'cat', 'dog'], threshold=0.5,
      images=dict(size=8, channels=1, resize=8, interpolation='bicubic'))


@pytest.mark.parametrize('arguments, message', [
    (dict(mode='masked'), "mode='masked'; known"),
    (dict(mode='static'), 'takes a classifier with given actions'),
    (dict(mode='cond', batch_size=2), "batch_size=2: mode='cond' takes one"),
    (dict(mode='compact'), "batch_size=None: mode='compact' needs"),
    (dict(mode='compact', batch_size=1), 'batch_size=1: .* at least 2'),
    (dict(mode='dense', batch_size=0), 'batch_size=0 must be a whole number'),
    (dict(mode='compact', batch_size=2.5), 'batch_size=2.5 must be a whole'),
    (dict(mode='dense', platforms=('gpu',)), r"platforms=\('gpu',\): give"),
    (dict(mode='dense', platforms=()), r'platforms=\(\): give'),
    (dict(mode='dense', platforms='cpu'), "platforms='cpu': give a list"),
])
def test_wrong_arguments(clf, tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    deploy.export(clf, tmp_path / 'a', **arguments)
  assert not list(tmp_path.iterdir())


def test_a_threshold_that_is_none_is_not_exported(clf, tmp_path, monkeypatch):
  monkeypatch.setattr(clf, 'threshold', 7)
  with pytest.raises(ValueError, match='threshold=7 must be a number in'):
    deploy.export(clf, tmp_path / 'a', mode='cond')
  assert not list(tmp_path.iterdir())


def test_a_directory_is_no_file_to_write(clf, tmp_path):
  with pytest.raises(ValueError, match='is a directory; name the file'):
    deploy.export(clf, tmp_path, mode='cond')


def test_given_layers_have_no_policy_to_export(fixed, tmp_path):
  with pytest.raises(ValueError, match="mode='cond' needs a trained policy"):
    deploy.export(fixed, tmp_path / 'a', mode='cond')
