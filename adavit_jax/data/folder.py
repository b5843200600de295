"""Image folders: root/train/CLASS/* and root/test/CLASS/* or root/val/CLASS/*.
"""

import collections
from collections.abc import Sequence
from concurrent import futures
import hashlib
import pathlib
import time

from absl import logging
import numpy as np

from adavit_jax import paths
from adavit_jax.data import decode
from adavit_jax.data import encoded_split
from adavit_jax.data import image_files
from adavit_jax.data import splits

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFiles:
  """The image files below directory/CLASS, sorted: an `EncodedImages`."""

  channels = 3
  key = {'source': 'folder'}

  def __init__(
      self, directory: pathlib.Path, class_names: Sequence[str] | None = None
  ):
    """Lists the files, and logs how many others there are.

    Args:
      directory: has one folder per class, which is searched recursively.
      class_names: the classes in order; None takes the names of the folders.

    Raises:
      ValueError: if the directory or the class folders are missing, or a class
        folder is empty or not in `class_names`.
    """
    if wrong := _misfit(directory, class_names):
      raise ValueError(
          f'{directory} {wrong}: put the images of each class into'
          f' {directory}/CLASS/')
    left_out = collections.Counter()
    folders = image_files.class_folders(directory, left_out)
    if class_names is None:
      class_names = folders
    self.class_names = tuple(class_names)
    self.label = f'{directory.parent.name}-{directory.name}'
    self._files = []
    labels = []
    for label, name in enumerate(self.class_names):
      if name not in folders:
        continue
      files = image_files.find(directory / name, left_out)
      if not files:
        raise ValueError(
            f'the class folder {directory / name} holds no image: add images or'
            f' remove it; image files end in {sorted(image_files.endings())}')
      self._files += files
      labels += [label] * len(files)
    self._labels = np.asarray(labels, np.int32)
    image_files.warn(directory, left_out)

  def __len__(self) -> int:
    return len(self._files)

  def name(self, index: int) -> str:
    """Returns the file's path."""
    return self._files[index]

  def labels(self) -> np.ndarray:
    """Returns int32 [n]."""
    return self._labels

  def read(
      self, indices: Sequence[int]
  ) -> list[tuple[bytes | decode.CorruptImageError, int]]:
    """Returns the bytes, or why they cannot be read, and label of each file.
    """
    return [(_read_bytes(self._files[i]), int(self._labels[i]))
            for i in indices]

  def digest(self, pool: futures.Executor) -> str:
    """Returns a digest of the images' bytes and labels, in order."""
    digest = hashlib.sha256()
    shown = time.monotonic()
    contents = pool.map(_digest, self._files)
    for i, (content, label) in enumerate(zip(contents, self._labels.tolist())):
      digest.update(content + b'%d' % label)
      if time.monotonic() - shown > 5:
        shown = time.monotonic()
        logging.info('Read %d of %d files, to see whether they are cached.',
                     i + 1, len(self))
    return digest.hexdigest()


def files(config_data) -> tuple[ImageFiles, ImageFiles]:
  """Returns the files of the training and of the test split.

  Some benchmarks have a test/ without labels: the test split is the first of
  test/ and val/ whose folders are classes of train/.

  Raises:
    ValueError: if config.data.data_dir does not have the layout in the module's
      docstring.
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
  train_files = ImageFiles(root / 'train')
  if len(train_files.class_names) < 2:
    raise ValueError(
        f"{root / 'train'} holds only the class {train_files.class_names[0]!r}:"
        ' add a folder for each class, train/CLASS/*')
  return train_files, ImageFiles(
      _test_dir(root, train_files.class_names), train_files.class_names)


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
      image_size=config_data.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _test_dir(root: pathlib.Path, class_names: Sequence[str]) -> pathlib.Path:
  """Returns the first of test/ and val/ whose folders are in `class_names`."""
  test, val = root / 'test', root / 'val'
  if not (wrong := _misfit(test, class_names)):
    return test
  if val_wrong := _misfit(val, class_names):
    raise ValueError(
        f'there are no test images: {test} {wrong}, and {val} {val_wrong}; put'
        f' those of each training class into {test}/CLASS/')
  if test.is_dir():
    logging.warning('%s %s: the test images are those of %s.', test, wrong, val)
  return val


def _misfit(directory: pathlib.Path, class_names: Sequence[str] | None) -> str:
  """Returns the problem with the class folders, '' if there is none."""
  if not directory.is_dir():
    return 'does not exist'
  folders = image_files.class_folders(directory)
  if not folders:
    return 'holds no class folder'
  unknown = set(folders) - set(folders if class_names is None else class_names)
  if unknown:
    return f'holds classes that the training images lack: {sorted(unknown)}'
  return ''


def _read_bytes(path: str) -> bytes | decode.CorruptImageError:
  for wait in (0.1, 1., None):  # errors of a network may pass
    try:
      with open(path, 'rb') as file:
        return file.read()
    except OSError as error:
      if wait is None:
        return decode.CorruptImageError(
            f'{type(error).__name__}: {error.strerror}')
    time.sleep(wait)


def _digest(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'blake2b').digest()
  except OSError:
    return b'unreadable'
