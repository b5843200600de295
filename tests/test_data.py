"""Digits, scenes, splits, statistics and the cache."""

import os
import time

import numpy as np
from PIL import Image
import pytest

from adavit_jax import data
from adavit_jax.data import cache
from adavit_jax.data import data_config
from adavit_jax.data import digit_scenes
from adavit_jax.data import digits
from adavit_jax.data import splits


@pytest.fixture
def config(tmp_path):
  config = data.default_config()
  config.cache_dir = str(tmp_path / 'cache')
  return config


def test_stratified_split_keeps_the_shares_and_every_class():
  labels = np.repeat([0, 1, 2, 3], [50, 30, 19, 1])
  rest, drawn = splits.stratified_split(labels, 20, seed=0)
  np.testing.assert_array_equal(
      np.sort(np.concatenate([rest, drawn])), np.arange(100)
  )
  np.testing.assert_array_equal(
      np.bincount(labels[drawn], minlength=4), [10, 6, 4, 0]
  )
  other = splits.stratified_split(labels, 20, seed=1)[1]
  assert set(other) != set(drawn)
  # Of classes with equal remainders, the seed chooses.
  drawn = [splits.stratified_split(np.arange(40) // 5, 4, seed=seed)[1] // 5
           for seed in range(20)]
  assert all(len(set(classes)) == 4 for classes in drawn)
  assert set(np.concatenate(drawn)) == set(range(8))
  _, drawn = splits.stratified_split(np.array([0, 1, 2, 2, 2, 2]), 3, seed=0)
  assert drawn.min() >= 2 and len(drawn) == 2


def test_channel_stats_are_numpys():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (700, 3, 4, 3), dtype=np.uint8)
  images[..., 2] = 51
  split = data.ArraySplit(images, np.zeros(700))
  mean, std = splits.channel_stats(split)
  scaled = images / 255
  np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(
      std, [*scaled.std((0, 1, 2))[:2], 0.5 / 255], rtol=1e-10
  )
  mean, _ = splits.channel_stats(split, sample=2)
  np.testing.assert_allclose(mean, scaled[[0, -1]].mean((0, 1, 2)))


def test_fingerprint_tells_where_a_split_ends():
  def fingerprint(*labels):
    parts = [data.ArraySplit(np.zeros((len(x), 1, 1, 1), np.uint8), x)
             for x in labels]
    return data.fingerprint(data.Dataset(
        *parts, num_classes=3, class_names=tuple('abc'), channels=1,
        image_size=1, mean=(0.5,), std=(0.5,)))

  assert fingerprint([0, 1], [2], [0]) == fingerprint([0, 1], [2], [0])
  assert fingerprint([0, 1], [2], [0]) != fingerprint([0], [1, 2], [0])
  assert fingerprint([0, 1], [2], [0]) != fingerprint([0, 2], [1], [0])


def test_digits_are_disjoint_and_the_test_split_is_fixed(config):
  config.holdout = 0.2
  rows = [digits.digit_rows(holdout=0.2, seed=seed) for seed in (0, 1)]
  for parts in rows:
    everything = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(1797))
    assert [len(parts[k]) for k in ('train', 'holdout', 'test')] == [
        1038, 259, 500
    ]
  np.testing.assert_array_equal(rows[0]['test'], rows[1]['test'])
  assert set(rows[0]['holdout']) != set(rows[1]['holdout'])

  dataset = data.load(config, seed=1)
  real, labels = digits.real_digits()
  for name, part in rows[1].items():
    split = getattr(dataset, name)
    np.testing.assert_array_equal(split.labels, labels[part])
    np.testing.assert_array_equal(
        split.images(np.arange(len(split)))[..., 0], real[part]
    )
  assert real.min() == 0 and real.max() == 255
  train = real[rows[1]['train']] / 255
  np.testing.assert_allclose(
      [*dataset.mean, *dataset.std], [train.mean(), train.std()])
  assert dataset.channels == 1 and dataset.num_classes == 10
  assert np.bincount(dataset.test.labels).min() >= 45


@pytest.mark.parametrize('seed', [0, 1])
def test_the_configs_seed_goes_before_the_callers(config, seed):
  want = data.load(config, seed=seed).holdout.labels
  config.seed = seed
  np.testing.assert_array_equal(data.load(config, seed=5).holdout.labels, want)


def test_digits_can_be_resized(config):
  config.image_size, config.load_size, config.holdout = 10, 12, 0.0
  dataset = data.load(config)
  assert dataset.train.images([0, 5]).shape == (2, 12, 12, 1)
  assert dataset.image_size == 10 and len(dataset.holdout) == 0


@pytest.mark.parametrize('interpolation', [None, 'bicubic', 'bilinear'])
@pytest.mark.parametrize('name', ['digits', 'digit_scenes'])
def test_resized_as_the_config_says(config, name, interpolation):
  config.name, config.holdout = name, 0.1
  config.scenes.num_train = config.scenes.num_test = 4
  config.image_size = 8 if name == 'digits' else 16
  before = data.load(config).test.images([0, 1, 2])[..., 0]
  config.image_size, config.interpolation = 24, interpolation
  after = data.load(config).test.images([0, 1, 2])[..., 0]
  how = Image.Resampling[(interpolation or 'bicubic').upper()]
  for small, large in zip(before, after):
    np.testing.assert_array_equal(
        large, Image.fromarray(small).resize((24, 24), how))


@pytest.mark.parametrize('kind', ['mix', 'max'])
def test_scenes_are_labeled_by_their_rule(kind):
  images, labels = digits.real_digits()
  scenes = digit_scenes.compose(
      images, labels, count=300, kind=kind, rng=np.random.default_rng(0)
  )
  shown = scenes.members >= 0
  values = np.where(shown, labels[scenes.members], -1)
  np.testing.assert_array_equal(scenes.labels, values[:, 0])
  np.testing.assert_array_equal(shown.sum(1) > 1, scenes.hard)
  assert {1, 2, 3} == set(shown.sum(1))
  assert 0.4 < scenes.hard.mean() < 0.6
  if kind == 'max':
    np.testing.assert_array_equal(scenes.labels, values.max(1))
  else:
    assert (scenes.labels < values.max(1)).any()
    # Only the labeled digit of a hard scene is bright.
    assert scenes.images[scenes.hard].max((1, 2)).min() > 0.8 * 255
  assert scenes.images.max((1, 2)).min() > 100


def test_only_the_labeled_digit_of_a_mix_is_bright(monkeypatch):
  monkeypatch.setattr(digit_scenes, '_NOISE', 0.0)
  # Even squares for digits, so that a pixel tells the level of its digit.
  images = np.full((10, 8, 8), 200, np.uint8)
  scenes = digit_scenes.compose(
      images, np.arange(10), count=100, kind='mix',
      rng=np.random.default_rng(0),
  )
  hard = scenes.images[scenes.hard] / 200
  levels = [np.unique(scene[scene > 0]) for scene in hard]
  assert all(level[-1] >= 0.84 for level in levels)
  assert all(0.39 <= level[0] and level[-2] <= 0.71 for level in levels)
  covered = (hard > 0).sum((1, 2))
  members = (scenes.members[scenes.hard] >= 0).sum(1)
  # Two squares of 64 pixels share at most 8.
  assert (covered >= 64 * members - 8 * members * (members - 1) // 2).all()


def test_scenes_splits_come_from_disjoint_digits(config, monkeypatch):
  config.name, config.image_size = 'digit_scenes', 16
  config.scenes.num_train, config.scenes.num_test = 60, 40
  seen = []

  def compose(images, labels, **kwargs):
    seen.append({image.tobytes() for image in images})
    return original(images, labels, **kwargs)

  original = digit_scenes.compose
  monkeypatch.setattr(digit_scenes, 'compose', compose)
  dataset = data.load(config)
  sizes = [len(dataset.train), len(dataset.holdout), len(dataset.test)]
  assert sizes == [60, 20, 40]
  train, holdout, test = seen
  real = {image.tobytes() for image in digits.real_digits()[0]}
  assert len(train) + len(holdout) + len(test) == len(real)
  assert train | holdout | test == real
  assert dataset.train.meta['hard'].dtype == bool
  assert dataset.train.images([0, 1]).shape == (2, 16, 16, 1)

  again = data.load(config)
  assert len(seen) == 3, 'the second load composed scenes again'
  every = np.arange(40)
  np.testing.assert_array_equal(
      again.test.images(every), dataset.test.images(every)
  )
  other = data.load(config, seed=1)
  np.testing.assert_array_equal(
      other.test.images(every), dataset.test.images(every)
  )
  assert (other.train.images(every) != dataset.train.images(every)).any()
  config.holdout = 0.3
  data.load(config)
  train, holdout = seen[5:]
  assert not train & holdout and train | holdout == real - test


def test_cache_builds_once(tmp_path):
  builds = []

  def build():
    builds.append(1)
    return np.arange(100)

  for _ in range(2):
    array = cache.cached(str(tmp_path), 'a/b', dict(x=1), build)
    np.testing.assert_array_equal(array, np.arange(100))
  assert len(builds) == 1
  cache.cached(str(tmp_path), 'a/b', dict(x=2), build)
  assert len(builds) == 2
  assert all(name.endswith('.npy') for name in os.listdir(tmp_path))


@pytest.mark.parametrize('keep', [0, 20, 200, 500])
def test_truncated_cache_is_rebuilt(tmp_path, keep):
  def build():
    return np.arange(100)

  key = (str(tmp_path), 'a', dict(x=1))
  cache.cached(*key, build)
  path = cache.cache_path(*key)
  whole = path.read_bytes()
  path.write_bytes(whole[:keep])
  np.testing.assert_array_equal(cache.cached(*key, build), np.arange(100))
  assert path.read_bytes() == whole


def test_failed_build_or_write_leaves_no_file(tmp_path, monkeypatch):
  def broken():
    raise ValueError('no data')

  with pytest.raises(ValueError, match='no data'):
    cache.cached(str(tmp_path), 'a', {}, broken)

  def full(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', full)
  array = cache.cached(str(tmp_path), 'a', {}, lambda: np.ones(3))
  np.testing.assert_array_equal(array, np.ones(3))
  assert not os.listdir(tmp_path)


def test_partial_files_of_killed_builds_go_after_a_day(tmp_path):
  key = (str(tmp_path), 'a', dict(x=1))
  stem = cache.cache_path(*key).stem
  old, new, other = (tmp_path / f'{name}.0123.partial'
                     for name in (stem, f'{stem}.new', 'b-4567'))
  ages = {old: 25, new: 23, other: 25}  # hours
  for path, hours in ages.items():
    path.write_bytes(b'cut short')
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
  cache.cached(*key, lambda: np.ones(3))
  assert sorted(os.listdir(tmp_path)) == sorted(
      [f'{stem}.npy', new.name, other.name])


def test_an_address_is_no_cache(monkeypatch, config):
  config.name, config.image_size = 'digit_scenes', 16
  config.cache_dir = 'gs://bucket/cache'
  with pytest.raises(ValueError, match="cache_dir='gs://bucket/cache'"):
    data.load(config)
  monkeypatch.setenv('ADAVIT_CACHE', 's3://b')
  with pytest.raises(ValueError, match="^ADAVIT_CACHE='s3://b'"):
    cache.cache_root('')


def test_cache_root(monkeypatch, tmp_path):
  monkeypatch.setenv('ADAVIT_CACHE', str(tmp_path))
  assert cache.cache_root('') == tmp_path
  assert cache.cache_root(str(tmp_path / 'b')) == tmp_path / 'b'
  monkeypatch.delenv('ADAVIT_CACHE')
  assert cache.cache_root('').parts[-2:] == ('.cache', 'adavit_jax')


@pytest.mark.parametrize('field, value', [
    ('name', 'mnist'), ('name', 'tfds:'), ('holdout', 0.6), ('holdout', -0.1),
    ('seed', -1), ('load_size', 4), ('image_size', 0),
    ('on_corrupt', 'ignore'),
    ('crop_padding', -1), ('policy_crop_padding', -1), ('resized_crop', 1.5),
    ('mixup', -1.0), ('label_smoothing', 2.0),
])
def test_bad_field_is_named(config, field, value):
  config[field] = value
  with pytest.raises(ValueError, match=field):
    data.load(config)


def test_bad_seed_is_named(config):
  with pytest.raises(ValueError, match='^seed=-1'):
    data.load(config, seed=-1)


def test_bad_scene_kind_is_named(config):
  config.name, config.image_size = 'digit_scenes', 16
  config.scenes.kind = 'min'
  with pytest.raises(ValueError, match="kind='min'"):
    data.load(config)


@pytest.mark.parametrize('size', [160, 192, 224, 384, 448])
def test_a_crop_gives_back_the_size_that_it_came_from(size):
  """A file of weights keeps the crop alone."""
  config = data.default_config()
  for load_size in range(size, 2 * size):
    config.update(image_size=size, crop=size / load_size)
    assert data_config.load_size(config) == load_size
