"""Image folders: root/train/CLASS/* and root/test/CLASS/* or root/val/CLASS/*.

With a file of labels, classes need no folders: root/train/** and so on.
"""

import collections
from collections.abc import Sequence
import pathlib

from absl import logging

from adavit_jax import paths
from adavit_jax.data import encoded_split
from adavit_jax.data import image_files
from adavit_jax.data import label_file
from adavit_jax.data import labeled_files
from adavit_jax.data import splits

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def files(
    config_data
) -> tuple[labeled_files.ImageFiles, labeled_files.ImageFiles]:
  """Returns the files of the training and of the test split.

  Some benchmarks have a test/ without labels: the test split is the first of
  test/ and val/ whose folders are classes of train/.

  Raises:
    ValueError: if config.data.data_dir does not have the layout in the module's
      docstring, or `config.data.labels` lacks images.
  """
  root = directory(config_data)
  if config_data.labels:
    labels = label_file.read(config_data.labels)
    return tuple(
        labeled_files.ImageFiles(
            root / part, names.values(), _labels_of(names, labels, config_data),
            labels.class_names)
        for part, names in unlabeled(config_data).items())
  train_files = labeled_files.ImageFiles.in_class_folders(root / 'train')
  if len(train_files.class_names) < 2:
    raise ValueError(
        f"{root / 'train'} holds only the class {train_files.class_names[0]!r}:"
        ' add a folder for each class, train/CLASS/*, or label the images, see'
        ' config.data.labels')
  return train_files, labeled_files.ImageFiles.in_class_folders(
      _test_dir(root, train_files.class_names), train_files.class_names)


def unlabeled(config_data) -> dict[str, dict[str, str]]:
  """Returns the images of the training and of the test split, without classes.

  Returns:
    {'train' and the first of 'test' and 'val': {name in a file of labels:
    path}}, sorted.

  Raises:
    ValueError: if a directory is missing or holds no image.
  """
  root = directory(config_data)
  parts = {}
  for part in ('train', 'test' if (root / 'test').is_dir() else 'val'):
    left_out = collections.Counter()
    images = image_files.find(root / part, left_out)
    image_files.warn(root / part, left_out)
    if not images:
      raise ValueError(f'config.data.data_dir: {root / part} holds no image')
    parts[part] = {
        pathlib.Path(path).relative_to(root).as_posix(): path
        for path in images}
  return parts


def directory(config_data) -> pathlib.Path:
  """Returns `config.data.data_dir`.

  Raises:
    ValueError: if it is not set, or has no train/.
  """
  if not config_data.data_dir:
    raise ValueError(
        "config.data.name='folder' needs config.data.data_dir: the directory"
        ' with train/ and test/ or val/')
  root = pathlib.Path(paths.expanded(
      config_data.data_dir, 'config.data.data_dir'))
  if not (root / 'train').is_dir():
    raise ValueError(
        f'{root / "train"} does not exist: config.data.data_dir must hold'
        ' train/CLASS/* and test/CLASS/* or val/CLASS/*')
  return root


def _labels_of(names, labels, config_data):
  """Returns the classes of the images of a split, in order."""
  missing = [name for name in names if name not in labels.labels]
  if missing:
    raise ValueError(
        f'config.data.labels={config_data.labels!r} has no label for'
        f' {missing[0]!r} ({len(missing)} of {len(names)} images): label the'
        ' images again')
  return [labels.labels[name] for name in names]


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the images below config.data.data_dir, as RGB.

  Mean and standard deviation are those of ImageNet, which pretrained weights
  expect.

  Raises:
    ValueError: as `files`.
  """
  train_files, test_files = files(config_data)
  train, holdout = encoded_split.load_split(
      train_files, config_data, holdout=config_data.holdout, seed=seed)
  test, _ = encoded_split.load_split(test_files, config_data)
  return splits.Dataset(
      train, holdout, test, num_classes=len(train_files.class_names),
      class_names=train_files.class_names, channels=3,
      image_size=config_data.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      files=f'{train_files.names_digest()} {test_files.names_digest()}')


def _test_dir(root: pathlib.Path, class_names: Sequence[str]) -> pathlib.Path:
  """Returns the first of test/ and val/ whose folders are in `class_names`."""
  test, val = root / 'test', root / 'val'
  if not (wrong := labeled_files.misfit(test, class_names)):
    return test
  if val_wrong := labeled_files.misfit(val, class_names):
    raise ValueError(
        f'there are no test images: {test} {wrong}, and {val} {val_wrong}; put'
        f' those of each training class into {test}/CLASS/')
  if test.is_dir():
    logging.warning('%s %s: the test images are those of %s.', test, wrong, val)
  return val
