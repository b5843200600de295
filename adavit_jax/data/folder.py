"""Image folders: root/train/CLASS/* and root/test/CLASS/* or root/val/CLASS/*.
"""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
import pathlib

from absl import logging
import numpy as np

from adavit_jax.data import encoded_split
from adavit_jax.data import splits

EXTENSIONS = frozenset((
    '.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm',
    '.pgm', '.pbm', '.jp2', '.avif',
))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFiles:
  """The image files below directory/CLASS, sorted: an `EncodedImages`."""

  channels = 3

  def __init__(
      self, directory: pathlib.Path, class_names: Sequence[str] | None = None
  ):
    """Lists the files.

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
    folders = _folders(directory)
    if class_names is None:
      class_names = folders
    self.class_names = tuple(class_names)
    self.label = f'{directory.parent.name}-{directory.name}'
    self._directory = directory
    self._files = []
    labels = []
    for label, name in enumerate(self.class_names):
      if name not in folders:
        continue
      files = _image_files(directory / name)
      if not files:
        raise ValueError(
            f'the class folder {directory / name} holds no image: add images or'
            f' remove it; image files end in {sorted(EXTENSIONS)}')
      self._files += files
      labels += [label] * len(files)
    self._labels = np.asarray(labels, np.int32)

  def __len__(self) -> int:
    return len(self._files)

  @property
  def key(self) -> dict:
    """Digest of file names, sizes and modification times."""
    digest = hashlib.sha256('\0'.join(self.class_names).encode())
    for file in self._files:
      stat = os.stat(file)
      name = os.path.relpath(file, self._directory)
      digest.update(
          f'\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}'.encode(
              errors='surrogateescape'))
    return dict(source='folder', files=digest.hexdigest())

  def name(self, index: int) -> str:
    """Returns the file's path."""
    return self._files[index]

  def labels(self) -> np.ndarray:
    """Returns int32 [n]."""
    return self._labels

  def read(
      self, indices: Sequence[int], pool: futures.Executor
  ) -> list[tuple[bytes, int]]:
    """Returns the bytes and the label of each file."""
    # Threads hide the latency of network file systems.
    data = pool.map(_read_bytes, [self._files[i] for i in indices])
    return list(zip(data, self._labels[list(indices)].tolist()))


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the images below config.data.data_dir, as RGB.

  Mean and standard deviation are those of ImageNet, which pretrained weights
  expect. Some benchmarks have a test/ without labels: the test split is the
  first of test/ and val/ whose folders are classes of train/.

  Raises:
    ValueError: if data_dir does not have the layout in the module's docstring.
  """
  if not config_data.data_dir:
    raise ValueError(
        "config.data.name='folder' needs config.data.data_dir: the directory"
        ' with train/ and test/ or val/')
  root = pathlib.Path(config_data.data_dir).expanduser()
  if not (root / 'train').is_dir():
    raise ValueError(
        f'{root / "train"} does not exist: config.data.data_dir must hold'
        ' train/CLASS/* and test/CLASS/* or val/CLASS/*')
  train_files = ImageFiles(root / 'train')
  if len(train_files.class_names) < 2:
    raise ValueError(
        f"{root / 'train'} holds only the class {train_files.class_names[0]!r}:"
        ' add a folder for each class, train/CLASS/*')
  test_files = ImageFiles(
      _test_dir(root, train_files.class_names), train_files.class_names)
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
  folders = _folders(directory)
  if not folders:
    return 'holds no class folder'
  unknown = set(folders) - set(folders if class_names is None else class_names)
  if unknown:
    return f'holds classes that the training images lack: {sorted(unknown)}'
  return ''


def _folders(directory: pathlib.Path) -> list[str]:
  return sorted(
      entry.name for entry in os.scandir(directory)
      if entry.is_dir() and not entry.name.startswith('.'))


def _image_files(directory: pathlib.Path) -> list[str]:
  files, walked = [], set()
  for parent, folders, names in os.walk(directory, followlinks=True):
    # Links may form cycles.
    real = os.path.realpath(parent)
    if real in walked:
      folders.clear()
      continue
    walked.add(real)
    # Skips copies of images in .ipynb_checkpoints and similar folders.
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    files += [
        os.path.join(parent, name) for name in names
        # macOS writes metadata to ._name.jpg beside name.jpg.
        if os.path.splitext(name)[1].lower() in EXTENSIONS
        and not name.startswith('.')
    ]
  return sorted(files)


def _read_bytes(path: str) -> bytes:
  with open(path, 'rb') as file:
    return file.read()
