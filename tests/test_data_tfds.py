"""tfds directories: a tiny one is prepared here, without TensorFlow."""

from concurrent import futures
import json
import os
import shutil
import sys

from adavit_jax import data
from adavit_jax.data import encoded_split
from adavit_jax.data import tfds as tfds_lib
from adavit_jax.data import tfds_dir
from etils import epath
import numpy as np
import pytest


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  import tiny_flags
  data_dir = tmp_path_factory.mktemp('tfds')
  tiny_flags.TinyFlags(
      data_dir=data_dir, file_format='array_record').download_and_prepare(
          file_format='array_record')
  return data_dir


@pytest.fixture
def config(prepared, tmp_path):
  config = data.default_config()
  config.update(dict(
      name='tfds:tiny_flags', data_dir=str(prepared), image_size=6,
      holdout=0.25, cache_dir=str(tmp_path / 'cache'),
  ))
  return config


def values(split):
  return split.images(np.arange(len(split)))[:, 0, 0, 0].astype(int)


@pytest.mark.parametrize('max_bytes', [2**31, 0], ids=['memory', 'lazy'])
def test_set_loads(config, monkeypatch, max_bytes):
  monkeypatch.setattr(encoded_split, 'MAX_BYTES', max_bytes)
  for reader in (encoded_split, tfds_lib):
    monkeypatch.setattr(reader, '_CHUNK', 5)
  dataset = data.load(config)
  assert dataset.train.lazy == (max_bytes == 0)
  assert dataset.class_names == ('red', 'green', 'blue')
  assert dataset.num_classes == 3 and dataset.channels == 3
  assert len(dataset.train) == 9 and len(dataset.holdout) == 3
  np.testing.assert_array_equal(
      values(dataset.holdout) % 3, dataset.holdout.labels
  )
  everything = np.concatenate([values(dataset.train), values(dataset.holdout)])
  np.testing.assert_array_equal(np.sort(everything), np.arange(12))
  np.testing.assert_array_equal(values(dataset.train) % 3, dataset.train.labels)
  test = values(dataset.test)
  np.testing.assert_array_equal(np.sort(test), [100, 101, 102, 103])
  np.testing.assert_array_equal((test - 100) % 3, dataset.test.labels)
  np.testing.assert_allclose(
      dataset.mean, values(dataset.train).mean() / 255, rtol=1e-6
  )
  np.testing.assert_allclose(
      dataset.std, values(dataset.train).std() / 255, rtol=1e-6
  )


def test_statistics_are_those_of_each_training_split(config, monkeypatch):
  monkeypatch.setattr(encoded_split, 'MAX_BYTES', 0)
  for seed, holdout in ((0, 0.25), (1, 0.25), (1, 0.5)):
    config.holdout = holdout
    dataset = data.load(config, seed=seed)
    np.testing.assert_allclose(
        dataset.mean, values(dataset.train).mean() / 255, rtol=1e-6
    )


def test_second_start_does_not_open_the_records(config, monkeypatch):
  first = data.load(config)
  # What is None in sys.modules cannot be imported.
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  second = data.load(config)
  np.testing.assert_array_equal(values(first.train), values(second.train))
  config.load_size = 7
  with pytest.raises(ImportError):
    data.load(config)


def edited(prepared, tmp_path, file, edit):
  """Copies the set's JSON files with one of them changed."""
  source = prepared / 'tiny_flags' / '1.10.0'
  target = tmp_path / 'copy' / 'tiny_flags' / '1.10.0'
  target.mkdir(parents=True)
  for path in source.iterdir():
    (target / path.name).write_bytes(path.read_bytes())
  table = json.loads((target / file).read_text())
  edit(table)
  (target / file).write_text(json.dumps(table))
  return str(tmp_path / 'copy')


def test_changed_info_is_another_cache_entry(
    config, prepared, tmp_path, monkeypatch
):
  data.load(config)
  config.data_dir = edited(
      prepared, tmp_path, 'dataset_info.json',
      lambda table: table.update(description='new'),
  )
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ImportError):
    data.load(config)


@pytest.mark.parametrize('name', ['', 'test_of_another_template'])
def test_other_records_of_the_same_size_and_time_are_another_set(
    prepared, tmp_path, name):
  shutil.copytree(prepared, tmp_path / 'copy')
  path = tfds_dir.find('tiny_flags', epath.Path(tmp_path / 'copy'))
  records = {split: tfds_lib.Records(tfds_dir.read(path), split, cache_dir='')
             for split in ('train', 'test')}

  def digests():
    with futures.ThreadPoolExecutor(1) as pool:
      return {split: r.digest(pool) for split, r in records.items()}

  file, = path.glob('*-test.*')
  if name:
    file = file.rename(path / name)
  before, files = digests(), {s: r.files() for s, r in records.items()}
  stat, content = os.stat(file), bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  after = digests()
  assert after['train'] == before['train'] and after['test'] != before['test']
  assert files['train'] != files['test']


def test_gray_images_of_classes_without_names(config, prepared, tmp_path):
  def gray(table):
    picture = table['featuresDict']['features']['picture']['image']
    picture['shape']['dimensions'] = ['6', '6', '1']

  config.data_dir = edited(prepared, tmp_path, 'features.json', gray)
  names, = tmp_path.glob('**/kind.labels.txt')
  names.unlink()
  dataset = data.load(config)
  assert dataset.channels == 1
  assert dataset.train.images([0]).shape == (1, 6, 6, 1)
  assert dataset.class_names == ('0', '1', '2')


def test_unlabeled_test_split_gives_way_to_validation(config, monkeypatch):
  original = encoded_split.load_split

  def unlabeled(encoded, *args, **kwargs):
    parts = original(encoded, *args, **kwargs)
    if encoded.label.endswith('test'):
      parts[0].labels[:] = -1
    return parts

  monkeypatch.setattr(encoded_split, 'load_split', unlabeled)
  test = data.load(config).test
  np.testing.assert_array_equal(np.sort(values(test)), [200, 201])


@pytest.mark.parametrize('file, edit, message', [
    (
        'dataset_info.json', lambda t: t.update(fileFormat='tfrecord'),
        'tfrecord',
    ),
    ('dataset_info.json', lambda t: t.pop('fileFormat'), 'tfrecord'),
    (
        'dataset_info.json', lambda t: t['splits'].clear(),
        "'train'",
    ),
    (
        'features.json',
        lambda t: t['featuresDict']['features'].pop('kind'),
        r"\['picture'\]",
    ),
])
def test_unusable_set_is_refused(
    config, prepared, tmp_path, file, edit, message
):
  config.data_dir = edited(prepared, tmp_path, file, edit)
  with pytest.raises(ValueError, match=message):
    data.load(config)


def test_missing_directory_is_named_before_all_else(
    config, monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  config.data_dir = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match="data_dir='.*nowhere'"):
    data.load(config)
  config.data_dir = ''
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'gone'))
  with pytest.raises(ValueError, match="TFDS_DATA_DIR='.*gone'"):
    data.load(config)
  config.data_dir = str(tmp_path)
  with pytest.raises(ValueError, match="'tiny_flags'"):
    data.load(config)


def test_environment_names_the_directory(config, prepared, monkeypatch):
  config.data_dir = ''
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  assert len(data.load(config).test) == 4


def test_download_only_where_nothing_is_given(config, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  import tiny_flags
  asked = []

  def builder(name, **kwargs):
    asked.append(name)
    return tiny_flags.TinyFlags(data_dir=tmp_path / 'new', **kwargs)

  monkeypatch.setattr(tfds, 'builder', builder)
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setattr(
      tfds_dir, 'default_data_dir',
      lambda: tfds_dir.epath.Path(tmp_path / 'new'),
  )
  config.data_dir = ''
  for _ in range(2):
    assert len(data.load(config).test) == 4
  assert asked == ['tiny_flags']


@pytest.mark.parametrize('error, message', [
    (ModuleNotFoundError("No module named 'tensorflow'"),
     'pip install tensorflow'),
    (ConnectionError('no route'),
     r'ConnectionError: no route\b.*data.data_dir'),
])
def test_download_that_fails_says_what_to_do(
    config, monkeypatch, tmp_path, error, message):
  import tensorflow_datasets as tfds

  def builder(name, **kwargs):
    raise error

  monkeypatch.setattr(tfds, 'builder', builder)
  monkeypatch.setattr(
      tfds_dir, 'default_data_dir', lambda: tfds_dir.epath.Path(tmp_path)
  )
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  config.data_dir = ''
  with pytest.raises(ValueError, match=message):
    data.load(config)


def test_versions_and_configurations_are_found(tmp_path):
  root = tfds_dir.epath.Path(tmp_path)
  for name in (
      'flags/1.9.0', 'flags/1.10.0', 'flags/1.11.0.incompleteA1',
      'sized/small/2.0.0', 'sized/large/2.0.0',
  ):
    (root / name).mkdir(parents=True)
    (root / name / 'dataset_info.json').write_text('{}')
  (root / 'flags' / '2.0.0').mkdir()  # Nothing in it.
  assert tfds_dir.find('flags', root).name == '1.10.0'
  assert tfds_dir.find('flags:1.9.0', root).name == '1.9.0'
  assert tfds_dir.find('flags:3.0.0', root) is None
  assert tfds_dir.find('roses', root) is None
  found = tfds_dir.find('sized/small:2.0.0', root)
  assert found.parts[-2:] == ('small', '2.0.0')
  with pytest.raises(ValueError, match=r"\['large', 'small'\]"):
    tfds_dir.find('sized', root)
