"""The regression data set, and labels that are numbers."""

import jax
import numpy as np
from PIL import Image
import pytest

from adavit_jax import data
from adavit_jax.data import digits
from adavit_jax.data import rotated_digits


@pytest.fixture
def config(tmp_path):
  config = data.default_config()
  config.update(dict(
      name='rotated_digits', image_size=16, holdout=0.2,
      cache_dir=str(tmp_path / 'cache'),
      rotations=dict(num_train=200, num_test=50),
  ))
  return config


@pytest.fixture
def seen(monkeypatch):
  """The digits that each split was composed of, in the order of the calls."""
  calls = []
  original = rotated_digits.rotate

  def rotate(images, **kwargs):
    calls.append({image.tobytes() for image in images})
    return original(images, **kwargs)

  monkeypatch.setattr(rotated_digits, 'rotate', rotate)
  return calls


def test_splits_come_from_disjoint_digits(config, seen):
  dataset = data.load(config)
  sizes = [len(dataset.train), len(dataset.holdout), len(dataset.test)]
  assert sizes == [200, 40, 50]
  train, holdout, test = seen
  assert (len(train), len(holdout), len(test)) == (1038, 259, 500)
  real = {image.tobytes() for image in digits.real_digits()[0]}
  assert len(train | holdout | test) == len(real) == 1797


def test_the_seed_decides_all_but_the_test_split(config, seen):
  first, again, other = (data.load(config, seed=seed) for seed in (0, 0, 1))
  assert len(seen) == 5, 'only what differs is composed anew'
  for name in ('train', 'holdout', 'test'):
    one, same, another = (getattr(d, name) for d in (first, again, other))
    every = np.arange(len(one))
    np.testing.assert_array_equal(one.images(every), same.images(every))
    np.testing.assert_array_equal(one.labels, same.labels)
    fixed = (one.labels == another.labels).all()
    assert fixed == (one.images(every) == another.images(every)).all()
    assert fixed == (name == 'test')


@pytest.mark.parametrize('fields, anew', [
    (dict(holdout=0.3), 2), (dict(rotations=dict(noise=0.1)), 3),
    (dict(load_size=20), 3)])
def test_what_changes_the_images_is_not_read_from_the_cache(
    config, seen, fields, anew):
  data.load(config)
  config.update(fields)
  data.load(config)
  assert len(seen) == 3 + anew


def test_what_a_regression_says_of_itself(config):
  dataset = data.load(config)
  labels = dataset.train.labels
  assert labels.dtype == np.float32
  assert -45 <= labels.min() < -40 and 40 < labels.max() <= 45
  assert len(set(labels)) > 190
  assert dataset.num_classes == 0 and dataset.class_names == ()
  mean, std, unit = dataset.target
  np.testing.assert_allclose(mean, labels.mean(), rtol=1e-4)
  np.testing.assert_allclose(std, labels.std(), rtol=1e-4)
  assert unit == 'degrees' and isinstance(mean, float)
  assert 90 / 12**0.5 - 3 < std < 90 / 12**0.5 + 3  # of a uniform angle
  images = dataset.train.images([0, 1])
  assert images.shape == (2, 16, 16, 1) and images.dtype == np.uint8


def test_images_are_turned_by_their_label():
  real = digits.real_digits()[0][:300]
  found = rotated_digits.rotate(
      real, count=300, size=16, noise=0., rng=np.random.default_rng(0)
  )
  back, as_is, further = [], [], []
  for image, angle, member in zip(*found):
    upright = np.zeros((16, 16))
    upright[2:14, 2:14] = Image.fromarray(real[member]).resize((12, 12))
    for turn, similar in ((-angle, back), (0, as_is), (angle, further)):
      turned = Image.fromarray(image).rotate(turn, Image.Resampling.BICUBIC)
      similar.append(np.corrcoef(np.ravel(turned), upright.ravel())[0, 1])
  assert np.mean(back) > 0.97 and np.min(back) > 0.9
  assert np.mean(as_is) < 0.85 and np.mean(further) < 0.6
  far = np.abs(found.angles) > 15
  assert (np.array(back) > np.array(as_is))[far].all()


def test_corners_stay_on_the_canvas():
  square = np.full((1, 8, 8), 255, np.uint8)
  found = rotated_digits.rotate(
      square, count=50, size=32, noise=0., rng=np.random.default_rng(0)
  )
  area = found.images.sum((1, 2)) / 255
  np.testing.assert_allclose(area, 24**2, rtol=0.01)


def test_images_may_be_larger_than_the_model_takes(config):
  config.image_size, config.load_size, config.holdout = 9, 11, 0.0
  dataset = data.load(config)
  assert dataset.train.images([0]).shape == (1, 11, 11, 1)
  assert dataset.image_size == 9 and len(dataset.holdout) == 0
  assert dataset.holdout.labels.dtype == np.float32
  assert dataset.holdout.images(np.arange(0)).shape == (0, 11, 11, 1)


def test_interpolation_is_the_configs(config):
  config.rotations.noise = 0.
  images = {}
  for name in (None, 'bicubic', 'bilinear'):
    config.interpolation = name
    test = data.load(config).test
    images[name] = test.images(np.arange(len(test)))[..., 0]
  np.testing.assert_array_equal(images[None], images['bicubic'])
  assert (images['bilinear'] != images[None]).any()
  # A bilinear resize stays within the original's values, a bicubic one does
  # not: an even square shows it.
  square = np.full((1, 8, 8), 200, np.uint8)
  square[:, :4] = 100
  top = {name: rotated_digits.rotate(
      square, count=20, size=16, noise=0., rng=np.random.default_rng(0),
      interpolation=name).images.max() for name in ('bicubic', 'bilinear')}
  assert top['bilinear'] == 200 < top['bicubic']


def test_noise_has_a_strength_of_its_own_in_each_image():
  gray = np.full((1, 8, 8), 128, np.uint8)
  make = lambda noise: rotated_digits.rotate(
      gray, count=400, size=16, noise=noise, rng=np.random.default_rng(0))
  clean, noisy = make(0.), make(0.2)
  np.testing.assert_array_equal(clean.angles, noisy.angles)
  added = np.float32(noisy.images) - clean.images
  # Where nothing is cut off at black or white.
  strength = added[:, 6:10, 6:10].std((1, 2)) / 255
  assert strength.max() < 0.32 and strength.min() < 0.02
  np.testing.assert_allclose(strength.mean(), 0.1, rtol=0.1)


def test_too_much_noise_is_refused(config):
  config.rotations.noise = 1.5
  with pytest.raises(ValueError, match='rotations.noise=1.5'):
    data.load(config)


@pytest.mark.parametrize('field', ['num_train', 'num_test'])
def test_too_few_images_are_refused(config, field):
  config.rotations[field] = 1
  with pytest.raises(ValueError, match=f'rotations.{field}=1'):
    data.load(config)


def test_too_few_digits_are_refused(config):
  # One of 5000 images is to show one of no digits.
  config.rotations.num_train, config.holdout = 5000, 0.0002
  with pytest.raises(ValueError, match='config.data.holdout'):
    data.load(config)


def test_labels_keep_their_kind():
  images = np.zeros((3, 2, 2, 1), np.uint8)
  for labels, dtype in (
      (np.arange(3), np.int32), ([True, False, True], np.int32),
      (np.arange(3) / 4, np.float32), (np.float16([0.5, 1, 2]), np.float32),
  ):
    split = data.ArraySplit(images, labels)
    assert split.labels.dtype == dtype
    np.testing.assert_array_equal(split.labels, labels)


def test_augmented_targets_are_the_normalized_labels(config):
  target = data.Target(10.0, 4.0, 'degrees')
  labels = np.float32([10, 14, -2.5])
  images = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16, 1)
  config.crop_padding = 1

  def augment(images, labels, target=target, num_classes=0):
    return data.augment(
        jax.random.key(0), images, labels, config_data=config, mean=(0.5,),
        std=(0.25,), image_size=16, num_classes=num_classes, target=target,
    )

  out, targets = jax.jit(augment)(images, labels)
  assert targets.dtype == np.float32
  np.testing.assert_array_equal(targets, [[0], [1], [-3.125]])
  # The images are augmented as those of classes are.
  plain, _ = augment(images, np.arange(3), None, 5)
  np.testing.assert_allclose(out, plain, atol=1e-6)


@pytest.mark.parametrize('field, value', [
    ('flip', True), ('mixup', 0.2), ('cutmix', 1.0), ('label_smoothing', 0.1),
])
def test_what_changes_the_meaning_of_a_label_is_refused(config, field, value):
  data.check_regression(config)
  config[field] = value
  data.check_augmentation(config)
  message = f'data.{field}={value}'
  with pytest.raises(ValueError, match=message):
    data.check_regression(config)
  with pytest.raises(ValueError, match=message):
    data.augment(
        jax.random.key(0), np.zeros((2, 16, 16, 1), np.uint8), np.zeros(2),
        config_data=config, num_classes=0, mean=(0.5,), std=(0.5,),
        image_size=16, target=data.Target(0.0, 1.0, 'degrees'),
    )
