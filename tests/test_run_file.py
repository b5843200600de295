"""A run in one file: `adavit_jax.save`, and `adavit_jax.load` of it."""

import json
import pathlib
import pickle
import sys
import types

import adavit_jax
from adavit_jax import trained
from adavit_jax import weights
from adavit_jax.exits import confidence
from adavit_jax.promise import promises
from adavit_jax.report import model_card
from adavit_jax.runs import run_file
from adavit_jax.runs import saved_run
from adavit_jax.train import state as state_lib
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from safetensors import numpy as safetensors_numpy
import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def _configs():
  """{name of a run: (config, its last phase)}."""
  policy = tiny.get_config()
  policy.data.data_dir = policy.init.workdir = '/secret/place'
  policy.data.labels = '/secret/labels.json'
  exits = tiny.get_config()
  exits.phases = ('classifier_wise',)
  exits.model.exits = ((1, 'mlp'), (2, 'mlp'))
  return dict(policy=(policy, 'joint'), exits=(exits, 'classifier_wise'))


@pytest.fixture(scope='module', autouse=True)
def runs():
  """Runs that were never trained, in work directories a/NAME."""
  configs = _configs()

  def find(self, **_):
    config, phase = configs[pathlib.Path(self.workdir).name]
    return saved_run.Saved('last', 7, dict(
        phase=phase, policy_learned=False, config=config.to_dict(),
        dataset=dict(num_classes=4, channels=1, mean=[.5], std=[.5],
                     class_names=list('abcd'))))

  def state(self, saved, system, mesh):
    rng = np.random.default_rng(0)
    state = jax.jit(lambda: state_lib.init_state(system, 0))()
    return state.replace(step=jnp.int32(saved.step), params=jax.tree.map(
        lambda x: x + rng.normal(size=x.shape, scale=.2).astype(np.float32),
        state.params))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(saved_run.Run, 'find', find)
    patch.setattr(saved_run.Run, 'warn_of_unfinished', lambda _: False)
    patch.setattr(saved_run.Run, 'state', state)
    yield


@pytest.fixture(scope='module')
def clf(runs):
  clf = adavit_jax.load('a/policy')
  clf.threshold = 0.4
  return clf


@pytest.fixture(scope='module')
def file(clf, tmp_path_factory):
  """The file of the classifier, exact."""
  path = tmp_path_factory.mktemp('file') / 'new' / 'a.safetensors'
  adavit_jax.save(clf, path, dtype='float32')
  return path


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_file_loads_as_its_run_does(clf, file, tmp_path):
  got = adavit_jax.load(file)
  assert repr(got) == repr(clf) and got.class_names == clf.class_names
  same(got.params, clf.params)
  same(got(IMAGES), clf(IMAGES))
  again = tmp_path / 'again.safetensors'
  adavit_jax.save(got, again, dtype='float32')
  same(weights.read(again)[1:], weights.read(file)[1:])


@pytest.mark.parametrize('dtype', [
    'float16', pytest.param('bfloat16', marks=pytest.mark.nightly)])
def test_arrays_with_two_axes_are_rounded(clf, tmp_path, dtype):
  path = tmp_path / 'a.safetensors'
  adavit_jax.save(clf, path, dtype=dtype)
  stored = safetensors_numpy.load_file(path)
  assert stored['backbone/encoders/norm1/scale'].dtype == jnp.dtype(dtype)
  assert stored['policy/msa_net/bias'].dtype == np.float32
  assert {x.dtype for x in stored.values() if x.ndim > 1} == {jnp.dtype(dtype)}
  got = adavit_jax.load(path)
  same(got.params, jax.tree.map(
      lambda x: x.astype(dtype).astype(x.dtype) if x.ndim > 1 else x,
      clf.params))


def test_what_a_type_cannot_hold_is_refused(clf, tmp_path, monkeypatch):
  params = state_lib.final_params
  monkeypatch.setattr(state_lib, 'final_params', lambda state: jax.tree.map(
      lambda x: x + 1e5, params(state)))
  save = lambda **given: adavit_jax.save(
      clf, tmp_path / 'a.safetensors', **given)
  with pytest.raises(ValueError, match='float16.*dtype=bfloat16'):
    save()
  with pytest.raises(ValueError, match='^dtype='):
    save(dtype='float64')
  with pytest.raises(ValueError, match='must end in .safetensors'):
    adavit_jax.save(clf, tmp_path / 'a.bin')
  with pytest.raises(ValueError, match='^class_names=.* 4'):
    save(dtype='bfloat16', class_names=['cat'])


def test_where_files_are_written_and_read(clf, file, tmp_path, monkeypatch):
  (tmp_path / 'a.safetensors').mkdir()
  with pytest.raises(ValueError, match="a.safetensors is a directory"):
    adavit_jax.save(clf, tmp_path / 'a.safetensors')
  with pytest.raises(ValueError, match='^gs://b/a.safetensors.*copy it'):
    adavit_jax.load('gs://b/a.safetensors')
  with pytest.raises(ValueError, match='a.safetensors is a file.*predict.py'):
    saved_run.Run(file)
  # A directory of the name of a model.
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'policy').mkdir()
  monkeypatch.setattr(trained, 'names', lambda: ['policy'])
  assert adavit_jax.load(
      pathlib.Path('./policy')).loaded.workdir == str(tmp_path / 'policy')


@pytest.mark.parametrize('actions', [
    pytest.param(adavit_jax.Actions([1., 0, 1], [0., 0, 1]),
                 marks=pytest.mark.nightly), adavit_jax.Stochastic(0.5)])
def test_layers_are_saved_and_may_be_replaced(tmp_path, actions):
  path = tmp_path / 'a.safetensors'
  adavit_jax.save(adavit_jax.load('a/policy', actions=actions), path)
  same(adavit_jax.load(path).actions, actions)
  assert adavit_jax.load(path, actions='111111').actions.num_kept == 6
  assert adavit_jax.load(path, decide='value').actions is None


def test_a_file_is_pickled_by_its_path(file):
  clf = adavit_jax.load(file)
  clf.threshold = 0.3
  data = pickle.dumps(clf)
  assert str(file).encode() in data and len(data) < 2000
  assert pickle.loads(data).threshold == 0.3


def test_other_checkpoints_are_not_in_a_file(file):
  assert adavit_jax.load(file, phase='joint').threshold == 0.4
  for given in (dict(phase='dense'), dict(best=True)):
    with pytest.raises(ValueError, match="phase='.*'joint'"):
      adavit_jax.load(file, **given)


def test_no_path_of_the_machine_is_in_a_file(file):
  assert 'secret' not in json.dumps(weights.read(file).metadata)


def test_the_backbone_in_a_file_is_weights(clf, file):
  got = weights.load(clf.system.model, file, jax.random.key(0))
  same(clf.system.fold(got)['backbone'], clf.params['backbone'])
  assert weights.preprocessing(file).mean == clf.system.mean


def _with(path, file, **metadata):
  """Writes a file with other metadata, where None removes a key."""
  tensors, old = weights.read(file)[1:]
  safetensors_numpy.save_file(tensors, path, {
      k: v for k, v in {**old, **metadata}.items() if v is not None})
  return path


@pytest.mark.parametrize('metadata, message', [
    (dict(run_format='2'), 'format 2.*upgrade'),
    (dict(run_format='x'), 'damaged'),
    (dict(run='{'), 'damaged'),
    (dict(card=None), 'damaged'),
    (dict(card='[]'), 'damaged'),
    (dict(run='[]'), 'damaged'),
    (dict(run='{"step": 3, "info": {}}'), 'damaged'),
    (dict(card='{"settings": {"threshold": 7}}'), 'damaged.*threshold'),
    (dict(card='{"settings": {"promise": {}}}'), 'damaged'),
    (dict(run_format=None), '--mode=weights')])
def test_another_file_is_refused(file, tmp_path, metadata, message):
  path = _with(tmp_path / 'a.safetensors', file, **metadata)
  with pytest.raises(ValueError, match=f'a.safetensors .*{message}') as error:
    adavit_jax.load(path)
  assert '\n' not in str(error.value)


def test_a_damaged_file_is_refused(file, tmp_path):
  path = tmp_path / 'a.safetensors'
  path.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(ValueError, match='a.safetensors .*damaged'):
    adavit_jax.load(path)
  tensors, metadata = weights.read(file)[1:]
  tensors.pop('policy/msa_net/bias')
  safetensors_numpy.save_file(tensors, path, metadata)
  with pytest.raises(ValueError, match='missing.*\n.*policy/msa_net/bias'):
    adavit_jax.load(path)
  with pytest.raises(ValueError, match='b.safetensors does not exist'):
    adavit_jax.load(tmp_path / 'b.safetensors')


def test_an_unknown_name_is_met_with_those_that_are_known():
  with pytest.raises(ValueError, match="'digits-polcy'.* 'digits-policy'"):
    adavit_jax.load('digits-polcy')
  with pytest.raises(ValueError, match='known are .*digits-policy'):
    adavit_jax.load('xyz')


def test_a_file_of_the_hub(file, tmp_path, monkeypatch):
  (tmp_path / 'model.safetensors').write_bytes(file.read_bytes())
  hub = types.ModuleType('huggingface_hub')
  hub.snapshot_download = lambda repo, **_: str(tmp_path)
  hub.__spec__ = types.SimpleNamespace()
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  clf = adavit_jax.load('hf://owner/name')
  assert clf.threshold == 0.4 and clf.loaded.workdir == 'hf://owner/name'


def test_exits_keep_thresholds_and_promise(tmp_path, caplog):
  clf, path = adavit_jax.load('a/exits'), tmp_path / 'a.safetensors'
  clf.thresholds = [-1., -.5]
  adavit_jax.save(clf, path)
  got = adavit_jax.load(path)
  np.testing.assert_array_equal(got.thresholds, [-1., -.5])
  assert got.promise is None
  promise = promises.Promise(
      kind='harm', risk=.01, confidence=.95, unit='', loss_bound=1.,
      num_images=500, num_tested=300, knob=None, number=None,
      thresholds=(-.2, -.1), rule=clf.system.config.exits.rule, passed=True,
      observed=0., limit=.01, macs=1., full_macs=2., share_early=.5,
      disagreement=.02, more_images=None)
  clf.promise = promise
  assert not caplog.text
  adavit_jax.save(clf, path, class_names=['cat', 'dog', 'cow', 'hen'])
  assert 'calibrate and save again' in caplog.text
  caplog.clear()
  got = adavit_jax.load(path)
  assert got.promise == promise and got.class_names[1] == 'dog'
  adavit_jax.save(got, path)  # changes no parameter any more
  assert not caplog.text
  np.testing.assert_array_equal(got.thresholds, promise.thresholds)
  other = adavit_jax.load(path, rule='margin')
  assert other.promise is None
  np.testing.assert_array_equal(other.thresholds, [confidence.NEVER] * 2)


def test_a_card_has_what_is_added(file, tmp_path):
  path = _with(tmp_path / 'a.safetensors', file)
  before = run_file.RunFile(path).card
  assert before['phase'] == 'joint' and before['settings'] == dict(
      actions=None, threshold=0.4)
  run_file.describe(path, accuracy=.5)
  assert run_file.RunFile(path).card == {**before, 'accuracy': .5}
  same(adavit_jax.load(path).params, adavit_jax.load(file).params)


@pytest.mark.parametrize('name', [
    name if name.startswith('digits') else pytest.param(
        name, marks=pytest.mark.nightly) for name in trained.names()])
def test_the_models_of_the_package(name):
  card = adavit_jax.pretrained()[name]
  assert {'data', 'recipe', 'commit', 'license', 'accuracy', 'macs',
          'macs_ratio', 'full_accuracy', 'num_test', 'settings'} < card.keys()
  assert trained.path(name).stat().st_size < 3e6
  clf = adavit_jax.load(name)
  assert clf.loaded.workdir == name and len(clf.class_names) == 10
  assert name.startswith('digits') or clf.class_names[3] == 'cat'
  model = clf.system.model
  image = np.zeros((1, *[model.image_size] * 2, model.channels), np.uint8)
  assert clf(image).logits.shape == (1, model.num_classes)


@pytest.mark.nightly
def test_the_digits_model_is_as_good_as_its_card_says():
  path = trained.path('digits-policy')
  got = model_card.measure(path)
  card = run_file.RunFile(path).card
  assert got == pytest.approx({name: card[name] for name in got}, rel=1e-6)


@pytest.mark.nightly
def test_export_writes_files(tmp_path):
  path = tmp_path / 'a.safetensors'
  run = lambda *flags: processes.Process(
      tmp_path, processes.script, 'export.py', '--workdir=digits-policy',
      '--mode=weights', f'--output={path}', *flags)
  process = run('--threshold=0.3', '--dtype=bfloat16')
  assert process.wait() == 0, process.err
  assert adavit_jax.load(path).threshold == 0.3
  for flag in ('--format=onnx', '--batch_size=3', '--actions=4', '--price=1.'):
    process = run(flag)
    assert process.wait() != 0
    last = process.err.splitlines()[-1]
    assert last.startswith(f'error: {flag}'), last
