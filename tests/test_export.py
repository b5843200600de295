"""Exported programs: the same numbers, without the model's code."""

import functools
import json
import re
import runpy
import subprocess
import sys

from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.inference import cascade_classifier
from adavit_jax.inference import classifier
from adavit_jax.inference import export
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import compact
from adavit_jax.runtime import skipping
from adavit_jax.runtime import stages as stages_lib
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny

CPU = ('cpu',)
CLOSE = dict(rtol=1e-5, atol=1e-5)
MASK = Actions(np.float32([1, 0, 1]), np.float32([0, 0, 1]))


@functools.cache
def _made():
  system = system_lib.create(tiny.get_config(), tiny.dataset())
  state = state_lib.init_state(system, 0)
  return system, state.replace(params=_random(system, state.params))


def _random(system, params, seed=1):
  """Parameters by which images are decided upon differently."""
  params, rng = dict(params), np.random.default_rng(seed)
  params.update(tiny.params(system.model))
  if system.nets is not None:
    params['policy'] = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), params['policy'])
  return params


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
  export.export(clf, path, mode='cond', platforms=CPU)
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


def test_compact_equals_the_classifier(clf, images, tmp_path, monkeypatch):
  monkeypatch.setattr(compact, '_SIZES', 2)
  monkeypatch.setattr(skipping, '_PREFIX_SIZES', 2)
  export.export(clf, tmp_path / 'a', mode='compact', batch_size=4,
                platforms=CPU)
  exported = _read(tmp_path / 'a')
  # The fixed encoder has no loop. In the one over the others are those over
  # passes: of all tokens and of prefix tokens for MSA and for MLP, one of full
  # passes and one of the last, which chooses between sizes.
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
  export.export(fixed, tmp_path / 'a', mode='static', platforms=CPU)
  exported = _read(tmp_path / 'a')
  want = fixed(images)
  for num in (1, 3, 8):
    logits, keep = exported.call(images[:num])
    np.testing.assert_allclose(logits, want.logits[:num], **CLOSE)
    np.testing.assert_array_equal(keep, np.tile(MASK.keep, (num, 1)))


def test_dense_runs_every_layer(clf, images, tmp_path):
  export.export(clf, tmp_path / 'a', mode='dense', batch_size=3)
  exported = _read(tmp_path / 'a')
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  assert exported.in_avals[0].shape == (3, 8, 8, 1)
  logits, keep = exported.call(images[:3])
  x = clf.system.normalize(images[:3])
  want = jax.jit(clf.system.model.apply)(
      {'params': clf.params['backbone']}, x)
  np.testing.assert_allclose(logits, want.total, **CLOSE)
  np.testing.assert_array_equal(keep, 1)


def _cascade(*phases, **overrides):
  config = tiny.get_config()
  config.phases = phases
  config.model.update(
      name='ravit_cifar_patch4_32', image_size=16, width=16, depth=None,
      num_heads=2, patch_size=4, **overrides)
  config.data.update(image_size=16, mean=(0.4,), std=(0.3,))
  system = system_lib.create(config, tiny.dataset())
  state = state_lib.init_state(system, 0)
  state = state.replace(params=_random(system, state.params, seed=3))
  return cascade_classifier.CascadeClassifier(
      system, state, phases[-1], max_batch_size=3)


@pytest.fixture(scope='module')
def cascade():
  return _cascade('exits', layers=(1, 1))


@pytest.fixture(scope='module')
def small():
  """Images of the cascade's size."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)


@pytest.fixture(scope='module')
def at_exits(cascade, small):
  """[E, B, K] logits."""
  run = jax.jit(stages_lib.exit_logits, static_argnums=0)
  return np.asarray(run(cascade.system.model, cascade.params,
                        cascade.system.normalize(small)))


@pytest.fixture(scope='module')
def stages(cascade, at_exits, tmp_path_factory):
  """The directory of a cascade that 2 of 5 images leave early."""
  first = np.sort(confidence_lib.negative_entropy(at_exits[0]))
  cascade.thresholds = float(first[2:4].mean())
  path = tmp_path_factory.mktemp('stages')
  export.export_stages(cascade, path, platforms=CPU)
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
  with pytest.raises(ValueError, match="^mode='cond'.*stages"):
    export.export(cascade, tmp_path / 'a', mode='cond')
  with pytest.raises(ValueError, match="^mode='stages'.*export_stages"):
    export.export(cascade, tmp_path / 'a', mode='stages')
  with pytest.raises(ValueError, match="^mode='stages'.*'cond'"):
    export.export_stages(clf, tmp_path / 'a')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['params', 'system', 'threshold'])
def test_what_calls_of_a_cascade_would_ignore_cannot_be_set(cascade, name):
  with pytest.raises(AttributeError):
    setattr(cascade, name, None)


@pytest.mark.parametrize('size', [0, -1, 2.5])
def test_wrong_batch_size_of_a_cascade(cascade, size):
  with pytest.raises(ValueError, match=f'^max_batch_size={size}'):
    cascade_classifier.CascadeClassifier(
        cascade.system, None, 'exits', max_batch_size=size)


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


def test_onnx_files_run_without_jax(clf, fixed, images, tmp_path):
  """In onnxruntime, on any number of images, with the classifier's logits."""
  pytest.importorskip('jax2onnx')
  path = tmp_path / 'a.png'
  Image.fromarray(images[0, ..., 0]).save(path)
  dense = _make(Actions(*np.ones((2, 3), np.float32)))
  for mode, given, own in (('dense', clf, dense), ('static', fixed, fixed)):
    export.export(given, tmp_path / mode, mode=mode, format='onnx')
    call, _ = _load_onnx(tmp_path / mode)
    want = own(images)
    for num in (1, 8):
      logits, keep = call(images[:num])
      np.testing.assert_allclose(logits, want.logits[:num], **CLOSE)
      np.testing.assert_array_equal(keep, want.actions.keep[:num])
  code = ('import runpy, sys; sys.argv = sys.argv[1:]; '
          'runpy.run_path(sys.argv[0], run_name="__main__"); '
          'print("jax" in sys.modules)')
  process = subprocess.run(**tiny.command(
      '-c', code, f'{tiny.ROOT}/examples/run_exported.py',
      str(tmp_path / 'static'), str(path)), timeout=120)
  assert process.returncode == 0, process.stderr[-2000:]
  name = clf.class_names[want.labels[0]]
  assert process.stdout.splitlines() == [
      f'{path}: {name} ({want.logits[0].max():.3f}), 50% of the adaptive '
      f'layers ran', 'False']


def _load_onnx(path):
  return runpy.run_path(f'{tiny.ROOT}/examples/run_exported.py')['load'](
      path, 'onnx')


def test_onnx_files_of_a_cascade(
    cascade, stages, small, at_exits, tmp_path, capsys):
  pytest.importorskip('jax2onnx')
  paths = export.export_stages(cascade, tmp_path, format='onnx')
  assert [path.name for path in paths] == ['stage_0.onnx', 'stage_1.onnx']
  carry = ()
  for path, want in zip(paths, at_exits):
    *carry, logits = _load_onnx(path)[0](small, *carry)
    np.testing.assert_allclose(logits, want, **CLOSE)
  assert _example(tmp_path, small, tmp_path, capsys) == _example(
      stages, small, tmp_path, capsys)


def test_onnx_needs_its_extra_and_no_policy(
    clf, cascade, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  for write in (functools.partial(export.export, clf, mode='dense'),
                functools.partial(export.export_stages, cascade)):
    with pytest.raises(ValueError, match="^format='onnx'.*extra"):
      write(tmp_path / 'a', format='onnx')
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
  drops = _cascade('exits', 'warm_start', 'policy', layers=(1, 1))
  with pytest.raises(ValueError, match="^format='onnx'.*policy"):
    export.export_stages(drops, tmp_path, batch_size=2, format='onnx')


def _example(path, images, directory, capsys):
  """What the example says of each image behind the name of its file."""
  files = [str(directory / f'{i}.png') for i in range(len(images))]
  for file, image in zip(files, images):
    Image.fromarray(image[..., 0]).save(file)
  runpy.run_path(f'{tiny.ROOT}/examples/run_exported.py')['main'](
      str(path), *files)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(files)
  return [line.removeprefix(f'{file}: ') for line, file in zip(lines, files)]


@pytest.mark.parametrize('batch_size', [None, 2])
def test_the_example_stops_at_the_exit_that_is_sure(
    cascade, stages, small, at_exits, tmp_path, capsys, batch_size):
  if batch_size:
    stages = tmp_path / 'a'
    export.export_stages(
        cascade, stages, batch_size=batch_size, platforms=CPU)
  got = _example(stages, small, tmp_path, capsys)
  confidence = confidence_lib.confidences(
      confidence_lib.RULES['entropy'], at_exits)
  chosen = confidence_lib.choose(confidence, cascade.thresholds)
  assert chosen.sum() == 3
  macs = np.cumsum(cascade.system.cost.stages)
  assert got == [
      f'{y[k].argmax()} ({y[k].max():.3f}), exit {k} of 0 to 1, {macs[k]:.3g} '
      f'MACs' for y, k in zip(at_exits.swapaxes(0, 1), chosen)]


@pytest.mark.nightly
def test_the_example_hands_on_what_a_policy_decides(small, tmp_path, capsys):
  """Inside the first stage, about one encoder there and one in the second."""
  clf = _cascade('exits', 'warm_start', 'policy', layers=(2, 1))
  shades = np.linspace(0, 1, 5).reshape(-1, 1, 1, 1)
  images = (shades * small).astype(np.uint8)

  @jax.jit
  def oracle(params, images):
    carry, found = None, []
    for stage in clf.system.after(clf.phase).programs('masked'):
      carry, logits = stage(params, images, carry)
      found.append(logits)
    return jnp.stack(found), Actions(*carry[1]).keep

  logits, keep = map(np.asarray, oracle(clf.params, images))
  for stage in range(2):
    assert len(np.unique(keep[:, stage::2], axis=0)) > 1
  confidence = confidence_lib.confidences(
      confidence_lib.RULES['entropy'], logits)
  clf.thresholds = float(np.sort(confidence[0])[2:4].mean())
  chosen = confidence_lib.choose(confidence, clf.thresholds)
  assert chosen.sum() == 3
  export.export_stages(clf, tmp_path, batch_size=3, platforms=CPU)
  assert json.loads(
      (tmp_path / 'stage_0.json').read_text())['stage_macs'] is None
  assert _example(tmp_path, images, tmp_path, capsys) == [
      f'{y[k].argmax()} ({y[k].max():.3f}), exit {k} of 0 to 1'
      for y, k in zip(logits.swapaxes(0, 1), chosen)]


def test_what_lies_beside_an_artifact(cond):
  about = json.loads((cond.parent / 'model.json').read_text())
  assert about == dict(
      mode='cond', format='stablehlo', threshold=0.5,
      class_names=['ant', 'bee', 'cat', 'dog'],
      num_layers=[3, 3], promise=None,
      images=dict(size=8, channels=1, resize=8, interpolation='bicubic'))


@pytest.mark.parametrize('arguments, field', [
    (dict(mode='masked'), "mode='masked'"),
    (dict(mode='static'), "mode='static'.* actions"),
    (dict(mode='cond', batch_size=2), "batch_size=2.*mode='cond'"),
    (dict(mode='compact'), "batch_size=None.*mode='compact'"),
    (dict(mode='compact', batch_size=1), "batch_size=1.*mode='compact'"),
    (dict(mode='dense', batch_size=0), 'batch_size=0'),
    (dict(mode='compact', batch_size=2.5), 'batch_size=2.5'),
    (dict(mode='dense', platforms=('gpu',)), r"platforms=\('gpu',\)"),
    (dict(mode='dense', platforms=()), r'platforms=\(\)'),
    (dict(mode='dense', platforms='cpu'), "platforms='cpu'"),
    (dict(mode='dense', format='tflite'), "format='tflite'"),
    (dict(mode='cond', format='onnx'), "format='onnx'.*mode='cond'"),
    (dict(mode='compact', format='onnx'), "format='onnx'.*mode='compact'"),
])
def test_wrong_arguments(clf, tmp_path, arguments, field):
  with pytest.raises(ValueError, match=f'^{field}'):
    export.export(clf, tmp_path / 'a', **arguments)
  assert not list(tmp_path.iterdir())


def test_a_directory_is_no_file_to_write(clf, tmp_path):
  with pytest.raises(
      ValueError, match=f'^output={re.escape(str(tmp_path))} .*file'):
    export.export(clf, tmp_path, mode='cond')


def test_given_layers_have_no_policy_to_export(fixed, tmp_path):
  with pytest.raises(ValueError, match="^mode='cond'.* policy"):
    export.export(fixed, tmp_path / 'a', mode='cond')
