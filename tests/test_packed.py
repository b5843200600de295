"""Packed sets: the folder's images in shards, whatever happened meanwhile."""

import importlib.util
import json
import multiprocessing
import resource
import threading
import time

from adavit_jax import data
from adavit_jax.data import batches as batches_lib
from adavit_jax.data import crops
from adavit_jax.data import packed
from adavit_jax.data import packing
from adavit_jax.data import packed_index
from adavit_jax.data import worker_batches
from etils import epath
import numpy as np
from PIL import Image
import pytest

NUM = dict(train=11, test=5)  # of each of two classes


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Images of 8 x 6 px of one gray each; PNG, so that grays are exact."""
  root = tmp_path_factory.mktemp('pets')
  for split, num in NUM.items():
    for label, name in enumerate(('cat', 'dog')):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(num):
        gray = 10 * i + label + (100 if split == 'test' else 0)
        Image.new('RGB', (8, 6), (gray,) * 3).save(folder / f'{i:02d}.png')
  return root


@pytest.fixture
def dest(root, tmp_path):
  packing.pack(packing.source(str(root)), tmp_path / 'packed', shard_images=4)
  return tmp_path / 'packed'


def load(directory, name='packed', **fields):
  config = data.default_config()
  config.update(dict(name=name, data_dir=str(directory), image_size=4,
                     cache_dir=str(directory) + '-cache', **fields))
  return data.load(config)


def files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def same(a, b):
  for name in ('train', 'holdout', 'test'):
    one, other = getattr(a, name), getattr(b, name)
    np.testing.assert_array_equal(one.labels, other.labels)
    rows = np.arange(len(one))[::-1]
    np.testing.assert_array_equal(one.images(rows), other.images(rows))


def test_a_packed_folder_is_the_folder(root, dest):
  packed, folder = load(dest), load(root, 'folder')
  same(packed, folder)
  assert len(packed.holdout) == 2
  assert packed.train.lazy and not folder.train.lazy
  for field in ('class_names', 'num_classes', 'channels', 'mean', 'std'):
    assert getattr(packed, field) == getattr(folder, field)
  assert data.fingerprint(packed) == data.fingerprint(folder)
  packing.check(dest)
  assert len(list(dest.glob('*.array_record'))) == 6 + 3


@pytest.mark.nightly
def test_a_packed_tfds_set_is_the_set(tmp_path):
  import tiny_flags
  tiny_flags.TinyFlags(
      data_dir=tmp_path / 'tfds', file_format='array_record'
  ).download_and_prepare(file_format='array_record')
  dest = tmp_path / 'packed'
  packing.pack(packing.source('tfds:tiny_flags', str(tmp_path / 'tfds')), dest)
  packed, prepared = load(dest), load(tmp_path / 'tfds', 'tfds:tiny_flags')
  same(packed, prepared)
  assert packed.class_names == prepared.class_names
  np.testing.assert_allclose(packed.mean, prepared.mean, rtol=0.1)


def test_packing_goes_on_after_a_kill(root, dest, tmp_path, monkeypatch):
  written, write = [], packing._write

  def killed(path, *args):
    if len(written) == 3:
      path.write_bytes(b'half of a shard')
      raise KeyboardInterrupt
    written.append(path.name)
    write(path, *args)

  other = tmp_path / 'other'
  monkeypatch.setattr(packing, '_write', killed)
  with pytest.raises(KeyboardInterrupt):
    packing.pack(packing.source(str(root)), other, shard_images=4)
  with pytest.raises(ValueError, match='index.json is missing'):
    load(other)
  with (other / 'done.jsonl').open('a') as log:
    log.write('{"name": "tr')
  monkeypatch.setattr(
      packing, '_write', lambda path, *args: (
          written.append(path.name), write(path, *args)))
  packing.pack(packing.source(str(root)), other, shard_images=4)
  assert len(written) == len(set(written)) == 9
  found, expected = files(other), files(dest)
  found.pop('done.jsonl'), expected.pop('done.jsonl')
  assert found == expected


def test_a_damaged_shard_is_named_and_written_again(root, dest):
  path = dest / 'train-00002-of-00006.array_record'
  whole = path.read_bytes()
  path.write_bytes(whole[:100] + b'\0\1\2\3' + whole[104:])
  with pytest.raises(ValueError, match=f'{path} is damaged'):
    packing.check(dest)
  with pytest.raises(data.CorruptImageError, match=rf'Image \d of {path}'):
    load(dest, holdout=0.).train.images(np.arange(22))
  for change in (lambda: path.write_bytes(whole[:-1]), path.unlink):
    change()
    for call in (packing.check, load):
      with pytest.raises(ValueError, match=f'the shard {path}'):
        call(dest)
    packing.pack(packing.source(str(root)), dest, shard_images=4)
    assert path.read_bytes() == whole


def test_what_is_no_packed_set_is_refused(root, dest, tmp_path):
  with pytest.raises(ValueError, match='not empty'):
    packing.pack(packing.source(str(root)), root)
  with pytest.raises(ValueError, match='another set'):
    packing.pack(packing.source(str(root)), dest, shard_images=5)
  with pytest.raises(ValueError, match='index.json is missing'):
    load(tmp_path)
  with pytest.raises(ValueError, match='config.data.data_dir'):
    config = data.default_config()
    config.name = 'packed'
    data.load(config)
  labels = dest / packed_index.labels_name('test')
  np.save(labels, np.zeros(3, np.int32))
  with pytest.raises(ValueError, match='test-labels.npy has 3 labels'):
    load(dest)
  index = dest / packed_index.NAME
  index.write_text(json.dumps({**json.loads(index.read_text()), 'format': 9}))
  with pytest.raises(ValueError, match='format 9'):
    load(dest)
  for damaged in ('', '[]', '{"format": 1}'):
    index.write_text(damaged)
    with pytest.raises(ValueError, match='index.json cannot be read'):
      load(dest)
  with pytest.raises(ValueError, match='config.data.data_dir.*no such user'):
    load('~nobody_of_this_name/set')


def test_as_many_files_as_there_are_shards_may_be_open(dest):
  before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (packed._OTHER_FILES, hard))
    load(dest)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (
        packed._OTHER_FILES + 9, hard)
    with pytest.raises(ValueError, match=r'shards.*ulimit -n'):
      packed._allow_open(2**62)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_processes_of_a_machine_copy_at_once(dest, tmp_path):
  both = threading.Barrier(2)

  class Source:
    """A directory whose labels two processes read at the same time."""

    def __init__(self, path):
      self._path = path

    def __truediv__(self, name):
      return Source(self._path / name)

    def copy(self, target, **kwargs):
      self._path.copy(target, **kwargs)
      if self._path.suffix == '.npy':
        both.wait(10)

  index, _ = packed_index.read(epath.Path(dest))
  errors = []

  def copied():
    try:
      packed._copied(Source(epath.Path(dest)), index, tmp_path / 'cache')
    except OSError as error:
      errors.append(error)
      both.abort()

  threads = [threading.Thread(target=copied) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  found, expected = files(tmp_path / 'cache'), files(dest)
  assert found == {name: expected[name] for name in found}
  assert len(found) == 2 + 9


def batches(split, workers=0, hosts=1, **kwargs):
  """The batches of steps 3..5 of six images, of all hosts together."""
  kwargs = dict(seed=2, start_step=3, stop_step=6, batch_size=6, repeats=1,
                crop=crops.Crop(5, 0.2)) | kwargs
  parts = [list(data.train_batches(
      split, workers=workers, process_index=i, process_count=hosts, **kwargs))
           for i in range(hosts)]
  return [{name: np.concatenate([part[name] for part in step])
           for name in step[0]} for step in zip(*parts)]


@pytest.fixture
def split(tmp_path):
  rng = np.random.default_rng(0)
  for part in ('train', 'test'):
    for name in ('cat', 'dog'):
      folder = tmp_path / 'noise' / part / name
      folder.mkdir(parents=True)
      for i in range(9):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(
            folder / f'{i}.png')
  packing.pack(packing.source(str(tmp_path / 'noise')), tmp_path / 'dest',
            shard_images=4)
  return load(tmp_path / 'dest', holdout=0.).train


def test_rows_are_crops_of_their_seed_step_and_row(split):
  found = batches(split)
  for step, batch in enumerate(found, 3):
    indices = data.batch_indices(2, step, size=18, batch_size=6)
    np.testing.assert_array_equal(batch['label'], split.labels[indices])
    for row, index in enumerate(indices):
      image = split.crops([index], [(2, step, row)], crops.Crop(5, 0.2))[0]
      np.testing.assert_array_equal(batch['image'][row], image)
  assert len(np.unique(found[0]['image'], axis=0)) == 6


@pytest.mark.parametrize('repeats', [1, 3])
def test_hosts_and_resumed_runs_see_the_same(split, repeats):
  whole = batches(split, repeats=repeats)
  same_batches(whole, batches(split, hosts=2, repeats=repeats))
  same_batches(whole[1:], batches(split, start_step=4, repeats=repeats))
  images = whole[0]['image']
  assert len(np.unique(images, axis=0)) == 6  # repeats have crops of their own


@pytest.mark.parametrize('rows', [1, 4, 32])
def test_batches_are_joined_from_parts(split, rows, monkeypatch):
  """By grain in this process: to start another takes seconds."""
  pytest.importorskip('grain')
  monkeypatch.setattr(worker_batches, '_ROWS', rows)
  load = batches_lib._Load(split, 2, 6, 1, crops.Crop(5, 0.2))
  found = worker_batches.run(load, range(3, 6), range(6), 0)
  same_batches(batches(split), list(found))


@pytest.mark.nightly
@pytest.mark.parametrize('workers, kwargs', [
    (1, dict(start_step=4)), (2, dict(repeats=3)), (4, dict(hosts=2))])
def test_any_number_of_workers_changes_nothing(
    split, workers, kwargs, monkeypatch):
  pytest.importorskip('grain')
  monkeypatch.setattr(worker_batches, '_ROWS', 2)  # several parts of a batch
  same_batches(batches(split, **kwargs),
               batches(split, workers=workers, **kwargs))


@pytest.mark.nightly
def test_the_end_of_batches_ends_the_workers_alone(split):
  pytest.importorskip('grain')
  found = data.train_batches(
      split, seed=0, start_step=0, stop_step=999, batch_size=6,
      crop=crops.Crop(5, 0.2), workers=2)
  next(found)
  other = multiprocessing.get_context('spawn').Process(
      target=time.sleep, args=(60,))
  other.start()
  found.close()
  try:
    assert multiprocessing.active_children() == [other]
  finally:
    other.kill()


@pytest.mark.nightly
def test_a_worker_that_is_killed_is_said(split):
  pytest.importorskip('grain')
  found = data.train_batches(
      split, seed=0, start_step=0, stop_step=999, batch_size=6,
      crop=crops.Crop(5, 0.2), workers=1)
  next(found)
  with pytest.raises(ValueError, match=r'data\.workers=1'):
    for _ in found:
      for child in multiprocessing.active_children():
        child.kill()


@pytest.mark.nightly
def test_a_worker_passes_on_what_it_cannot_decode(root, dest):
  pytest.importorskip('grain')
  path = dest / 'train-00002-of-00006.array_record'
  whole = path.read_bytes()
  split = load(dest, holdout=0.).train
  path.write_bytes(whole[:100] + b'\0\1\2\3' + whole[104:])
  with pytest.raises(data.CorruptImageError, match=str(path)):
    batches(split, workers=1, batch_size=22, start_step=0, stop_step=2)


def test_workers_need_grain(root, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'config\.data\.workers=2.*input'):
    load(root, 'folder', workers=2)
  with pytest.raises(ValueError, match=r'config\.data\.workers=-1'):
    load(root, 'folder', workers=-1)


def same_batches(ours, theirs):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs):
    for name in ('image', 'label'):
      np.testing.assert_array_equal(one[name], other[name])
