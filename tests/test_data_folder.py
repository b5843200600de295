"""Image folders: every odd layout, damaged files, in memory and lazily."""

import errno
import os
import pathlib
import re
import shutil
import types

from adavit_jax import data
from adavit_jax.data import decode
from adavit_jax.data import encoded_split
from adavit_jax.data import folder
from adavit_jax.data import labeled_files
import numpy as np
from PIL import Image
import pytest


def save(path, image, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, **kwargs)


def gray(value, size=(6, 6)):
  return Image.new('RGB', size, (value,) * 3)


@pytest.fixture
def root(tmp_path):
  """Six training images (values 10..60) and two to test, of 2 classes."""
  root = tmp_path / 'pets'
  for i, name in enumerate(('cat', 'dog')):
    for j in range(3):
      save(root / 'train' / name / f'{j}.png', gray(10 * (3 * i + j + 1)))
    save(root / 'test' / name / 'x.PNG', gray(100 + i))
  return root


@pytest.fixture
def config(root, tmp_path):
  config = data.default_config()
  config.update(dict(
      name='folder', data_dir=str(root), image_size=4, holdout=0.0,
      cache_dir=str(tmp_path / 'cache'),
  ))
  return config


def values(split):
  images = split.images(np.arange(len(split)))
  assert images.dtype == np.uint8 and images.shape[1:] == (4, 4, 3)
  return images[:, 0, 0, 0].tolist()


def test_hidden_files_and_folders_are_no_images(config, root):
  cats = root / 'train' / 'cat'
  for hidden in ('.ipynb_checkpoints/0.png', 'more/.trash/1.png', '._2.png'):
    save(cats / hidden, gray(200))
  save(cats / 'more' / '3.png', gray(40))
  assert values(data.load(config).train) == [10, 20, 30, 40, 40, 50, 60]


def test_folders_of_the_system_are_no_classes_and_hold_no_images(config, root):
  save(root / 'train' / '__MACOSX' / 'cat' / '0.png', gray(200))
  save(root / 'train' / 'cat' / '@eaDir' / '0.png', gray(200))
  dataset = data.load(config)
  assert dataset.class_names == ('cat', 'dog')
  assert values(dataset.train) == [10, 20, 30, 40, 50, 60]


def test_what_pillow_reads_is_read_and_the_rest_is_counted(
    config, root, caplog):
  cats = root / 'train' / 'cat'
  for name in ('3.jfif', '4.JPE', '5.tga', '6'):
    save(cats / name, gray(40), format='TGA' if name == '5.tga' else 'PNG')
  for name in ('a.heic', 'b.heic', 'c.mpg', 'README', '../loose.png'):
    (cats / name).write_bytes(b'\0\0\0\x18ftypheic')
  os.symlink(root / 'missing', cats / '7.png')
  os.mkfifo(cats / '8.png')
  with caplog.at_level('WARNING'):
    dataset = data.load(config)
  assert len(dataset.train) == 10
  line, = [line for line in caplog.messages if 'left out' in line]
  for part in ('7 files', '2 (.heic)', '1 (.mpg)', '1 (no ending)',
               '1 (no regular file)', '1 (beside the class folders)',
               '1 (link to a missing file)'):
    assert part in line


def test_numbers_are_sorted_as_numbers(config, root):
  for split in ('train', 'test'):
    for old, new in (('cat', '10'), ('dog', '9')):
      os.rename(root / split / old, root / split / new)
  dataset = data.load(config)
  assert dataset.class_names == ('9', '10')
  assert values(dataset.test) == [101, 100]


def test_a_name_that_is_not_utf8_is_refused(config, root):
  os.rename(root / 'train' / 'cat', os.fsencode(root) + b'/train/\xff')
  with pytest.raises(ValueError, match='UTF-8'):
    data.load(config)


@pytest.mark.parametrize('where', ['beside', 'in place'])
def test_other_pixels_of_the_same_names_sizes_and_times_are_read(
    config, root, tmp_path, where):
  for path in root.rglob('*.png'):
    Image.open(path).save(path.with_suffix('.bmp'))
    path.unlink()
  for path in root.rglob('*.bmp'):
    os.utime(path, (0, 0))
  data.load(config)
  if where == 'beside':
    config.data_dir = str(tmp_path / 'other' / root.name)
    shutil.copytree(root, config.data_dir)
  for path in pathlib.Path(config.data_dir).rglob('*.bmp'):
    gray(200).save(path)
    os.utime(path, (0, 0))
  assert values(data.load(config).train) == 6 * [200]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_class_may_not_vanish_when_corrupt_images_are_skipped(
    config, root, split):
  config.on_corrupt = 'skip'
  for path in (root / split / 'dog').iterdir():
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='class 1 .*dog'):
    data.load(config)


def test_links_are_followed_and_what_they_share_is_read_once(config, root):
  cats = root / 'train' / 'cat'
  os.rename(cats, root / 'cats')
  os.symlink(root / 'cats', cats)
  os.symlink(cats, cats / 'loop')
  for name in ('more', 'same'):
    os.symlink(root / 'test' / 'dog', cats / name)
  assert values(data.load(config).train) == [10, 20, 30, 101, 40, 50, 60]


@pytest.mark.parametrize('max_bytes', [2**31, 0], ids=['memory', 'lazy'])
def test_folder_loads(config, root, monkeypatch, max_bytes):
  monkeypatch.setattr(encoded_split, 'MAX_BYTES', max_bytes)
  config.holdout = 1 / 3
  save(root / 'test' / 'cat' / 'y.png', gray(102))
  dataset = data.load(config)
  assert dataset.train.lazy == (max_bytes == 0)
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.num_classes == 2 and dataset.channels == 3
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1])
  np.testing.assert_array_equal(dataset.holdout.labels, [0, 1])
  everything = values(dataset.train) + values(dataset.holdout)
  assert sorted(everything) == [10, 20, 30, 40, 50, 60]
  assert values(dataset.test) == [100, 102, 101]
  assert dataset.mean == (0.485, 0.456, 0.406)
  assert dataset.std == (0.229, 0.224, 0.225)
  image = dataset.train.images(np.array([3, 0]))[:, 0, 0, 0]
  np.testing.assert_array_equal(image, np.array(values(dataset.train))[[3, 0]])


def test_a_renamed_file_is_another_set(config, root):
  before = data.load(config)
  (root / 'train' / 'cat' / '0.png').rename(root / 'train' / 'cat' / '9.png')
  after = data.load(config)
  assert data.fingerprint(after) == data.fingerprint(before)
  assert after.files != before.files
  moved = root.rename(root.parent / 'moved')
  config.data_dir = str(moved)
  assert data.load(config).files == after.files


def test_val_serves_where_test_is_missing(config, root):
  os.rename(root / 'test', root / 'val')
  assert values(data.load(config).test) == [100, 101]


def test_val_serves_where_test_has_no_labels(config, root, caplog):
  os.rename(root / 'test', root / 'val')
  save(root / 'test' / 'images' / '0.png', gray(7))  # as Tiny ImageNet's
  assert values(data.load(config).test) == [100, 101]
  assert f"lack: ['images']: the test images are those of {root}/val" in (
      caplog.text)
  shutil.rmtree(root / 'test' / 'images')
  save(root / 'test' / '0.png', gray(7))  # as ImageNet's
  assert values(data.load(config).test) == [100, 101]
  assert f'{root}/test holds no class folder: the test images' in caplog.text


def test_first_of_test_and_val_is_taken(config, root, caplog):
  save(root / 'val' / 'cat' / 'x.png', gray(7))
  assert values(data.load(config).test) == [100, 101]
  assert 'the test images are' not in caplog.text


def test_neither_test_nor_val_fits(config, root):
  shutil.rmtree(root / 'test')
  save(root / 'test' / '0.png', gray(7))
  save(root / 'val' / 'images' / '0.png', gray(7))
  with pytest.raises(ValueError) as error:
    data.load(config)
  for named in (f'{root}/test ', f'{root}/val ', "['images']",
                f'{root}/test/CLASS/'):
    assert named in str(error.value)


def test_second_load_decodes_nothing_until_a_file_changes(
    config, root, monkeypatch
):
  decoded = []
  original = decode.decode_image

  def counted(*args, **kwargs):
    decoded.append(1)
    return original(*args, **kwargs)

  monkeypatch.setattr(decode, 'decode_image', counted)
  data.load(config)
  assert len(decoded) == 8
  data.load(config)
  assert len(decoded) == 8
  save(root / 'train' / 'cat' / '0.png', gray(77))
  os.utime(root / 'train' / 'cat' / '0.png', ns=(0, 12345))
  assert values(data.load(config).train)[0] == 77
  assert len(decoded) == 14
  config.load_size = 6
  assert data.load(config).train.images([0]).shape == (1, 6, 6, 3)


def test_a_class_more_moves_the_labels_that_were_cached(config, root):
  np.testing.assert_array_equal(data.load(config).test.labels, [0, 1])
  save(root / 'train' / 'ant' / '0.png', gray(5))
  np.testing.assert_array_equal(data.load(config).test.labels, [1, 2])


def test_a_file_moved_to_another_class_takes_its_label(config, root):
  data.load(config)
  train = root / 'train'
  os.rename(train / 'cat' / '2.png', train / 'dog' / '-.png')
  dataset = data.load(config)
  assert values(dataset.train) == [10, 20, 30, 40, 50, 60]
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize('keep', [0, 40])
def test_reading_a_damaged_file_names_it(config, root, keep):
  path = root / 'test' / 'cat' / 'x.PNG'
  path.write_bytes(path.read_bytes()[:keep])
  model = types.SimpleNamespace(image_size=4, channels=3)
  with pytest.raises(
      data.CorruptImageError, match=rf'^{re.escape(str(path))} .*\(\w+: .+\)$'):
    decode.read(path, config, model)
  with pytest.raises(FileNotFoundError):
    decode.read(root / 'none.png', config, model)


@pytest.fixture
def corrupt(root):
  path = root / 'train' / 'cat' / '1.png'
  path.write_bytes(path.read_bytes()[:40])
  return path


@pytest.mark.parametrize('max_bytes', [2**31, 0], ids=['memory', 'lazy'])
def test_corrupt_image_is_named(config, corrupt, monkeypatch, max_bytes):
  monkeypatch.setattr(encoded_split, 'MAX_BYTES', max_bytes)
  with pytest.raises(ValueError, match=r'train/cat/1\.png.*on_corrupt'):
    values(data.load(config).train)


def test_a_file_that_the_disk_does_not_give_is_a_corrupt_image(
    config, root, monkeypatch):
  bad = str(root / 'train' / 'cat' / '1.png')
  def read(path, *args):
    if path == bad:
      raise OSError(errno.EIO, 'Input/output error')
    return open(path, *args)
  monkeypatch.setattr(labeled_files, 'open', read, raising=False)
  with pytest.raises(ValueError, match=f'{bad}.*Input/output.*on_corrupt'):
    data.load(config)
  config.on_corrupt = 'skip'
  assert values(data.load(config).train) == [10, 30, 40, 50, 60]


def test_corrupt_image_is_left_out(config, corrupt, caplog):
  config.on_corrupt = 'skip'
  dataset = data.load(config)
  assert values(dataset.train) == [10, 30, 40, 50, 60]
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 1])
  assert str(corrupt) in caplog.text
  # What was cached by skipping must not satisfy who wants an error.
  config.on_corrupt = 'error'
  with pytest.raises(ValueError, match='1.png'):
    data.load(config)


def test_next_of_the_class_stands_in_where_decoding_is_lazy(
    config, corrupt, monkeypatch, caplog
):
  monkeypatch.setattr(encoded_split, 'MAX_BYTES', 0)
  config.on_corrupt = 'skip'
  dataset = data.load(config)
  assert values(dataset.train) == [10, 30, 30, 40, 50, 60]
  assert str(corrupt) in caplog.text
  (corrupt.parent / '2.png').write_bytes(b'')
  assert values(dataset.train) == [10, 10, 10, 40, 50, 60]
  (corrupt.parent / '0.png').write_bytes(b'')
  with pytest.raises(ValueError, match='cat'):
    dataset.train.images([1])


def test_nothing_readable_is_an_error(config, root):
  config.on_corrupt = 'skip'
  for path in root.glob('test/*/*'):
    path.write_bytes(b'x')
  with pytest.raises(ValueError, match='pets-test'):
    data.load(config)


def test_layout_errors_name_the_folder(config, root):
  (root / 'test' / 'eel').mkdir()
  with pytest.raises(ValueError, match="'eel'"):
    data.load(config)
  (root / 'test' / 'eel').rmdir()
  (root / 'train' / 'ant').mkdir()
  with pytest.raises(ValueError, match='train/ant'):
    data.load(config)
  (root / 'train' / 'ant' / 'readme.txt').write_text('')
  (root / 'train' / 'ant' / '._a.png').write_text('')
  with pytest.raises(ValueError, match='train/ant'):
    data.load(config)
  shutil.rmtree(root / 'train' / 'ant')
  os.rename(root / 'train' / 'dog', root / 'dog')
  with pytest.raises(ValueError, match="train .*'cat'"):
    data.load(config)
  os.rename(root / 'dog', root / 'train' / 'dog')
  os.rename(root / 'test', root / 'tests')
  with pytest.raises(ValueError, match='/test .*/val '):
    data.load(config)
  os.rename(root / 'train', root / 'training')
  with pytest.raises(ValueError, match='/train '):
    data.load(config)
  (root / 'train').mkdir()
  (root / 'test').mkdir()
  with pytest.raises(ValueError, match='/train '):
    data.load(config)
  config.data_dir = ''
  with pytest.raises(ValueError, match='config.data.data_dir'):
    data.load(config)


def test_test_split_may_lack_a_class(config, root):
  (root / 'test' / 'cat' / 'x.PNG').unlink()
  (root / 'test' / 'cat').rmdir()
  dataset = data.load(config)
  assert dataset.num_classes == 2
  np.testing.assert_array_equal(dataset.test.labels, [1])


def test_crop_and_interpolation_of_a_models_family(config, root):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
  image = Image.fromarray(pixels)
  save(root / 'test' / 'cat' / 'x.PNG', image)
  config.crop = 0.6  # floor(4 / 0.6) = 6
  found = {}
  for name in ('bicubic', 'bilinear'):
    config.interpolation = name
    found[name] = data.load(config).test.images([0])[0]
    small = image.resize((8, 6), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(found[name], np.asarray(small)[:, 1:7])
  assert (found['bicubic'] != found['bilinear']).any()
  model = types.SimpleNamespace(image_size=4, channels=3)
  np.testing.assert_array_equal(
      decode.read(root / 'test' / 'cat' / 'x.PNG', config, model),
      found['bilinear'][1:5, 1:5])
  config.update(crop=None, interpolation=None, load_size=6)
  np.testing.assert_array_equal(
      data.load(config).test.images([0])[0], found['bicubic'])


@pytest.mark.parametrize('fields, named', [
    (dict(interpolation='cubic'), "interpolation='cubic'"),
    (dict(crop=1.5), 'crop=1.5'),
    (dict(crop=0.9, load_size=6), 'crop=0.9 and load_size=6'),
    (dict(mean=(124., 116., 104.)), r'mean=\(124.0, '),
    (dict(std=(0., 1., 1.)), r'std=\(0.0, 1.0, 1.0\)'),
])
def test_wrong_preprocessing(config, fields, named):
  config.update(fields)
  with pytest.raises(ValueError, match=named):
    data.load(config)
