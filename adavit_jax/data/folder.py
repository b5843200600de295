"""A folder of images: root/train/CLASS/* and root/test/CLASS/* or root/val."""

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
      directory: holds one folder for each class, of any depth.
      class_names: the classes in their order; None to take the folders'.

    Raises:
      ValueError: there is no directory, no class folder, an empty one, or one
        that `class_names` lacks.
    """
    if wrong := _misfit(directory, class_names):
      raise ValueError(
          f'{directory} {wrong}. Put the images of each class into'
          f' {directory}/CLASS/.'
      )
    found = _folders(directory)
    if class_names is None:
      class_names = found
    self.class_names = tuple(class_names)
    self.label = f'{directory.parent.name}-{directory.name}'
    self._directory = directory
    self._files = []
    labels = []
    for label, name in enumerate(self.class_names):
      if name not in found:
        continue
      files = _image_files(directory / name)
      if not files:
        raise ValueError(
            f'The class folder {directory / name} holds no image: add some or'
            f' remove it. Image files end in {sorted(EXTENSIONS)}.'
        )
      self._files += files
      labels += [label] * len(files)
    self._labels = np.asarray(labels, np.int32)

  def __len__(self) -> int:
    return len(self._files)

  @property
  def key(self) -> dict:
    """Names, sizes and times of change: what a changed file cannot keep."""
    digest = hashlib.sha256('\0'.join(self.class_names).encode())
    for file in self._files:
      stat = os.stat(file)
      name = os.path.relpath(file, self._directory)
      digest.update(
          f'\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}'.encode(
              errors='surrogateescape'
          )
      )
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
    # Read in threads too: over a network the latencies add up.
    data = pool.map(_read_bytes, [self._files[i] for i in indices])
    return list(zip(data, self._labels[list(indices)].tolist()))


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the images below config.data.data_dir, as RGB.

  Mean and deviation are ImageNet's, which pretrained weights expect. The test/
  of a benchmark may be without labels: what is tested on is the first of test/
  and val/ whose folders are classes of train/.

  Raises:
    ValueError: data_dir is not laid out as the module's docstring says.
  """
  if not config_data.data_dir:
    raise ValueError(
        "config.data.name='folder' needs config.data.data_dir: the folder that"
        ' holds train/ and test/ or val/.'
    )
  root = pathlib.Path(config_data.data_dir).expanduser()
  if not (root / 'train').is_dir():
    raise ValueError(
        f'{root / "train"} does not exist: config.data.data_dir must hold'
        ' train/CLASS/* and test/CLASS/* or val/CLASS/*.'
    )
  train_files = ImageFiles(root / 'train')
  if len(train_files.class_names) < 2:
    raise ValueError(
        f"{root / 'train'} holds only the class {train_files.class_names[0]!r}:"
        ' its folders are the classes, train/CLASS/*.'
    )
  test_files = ImageFiles(
      _held_out(root, train_files.class_names), train_files.class_names
  )
  train, holdout = encoded_split.load_split(
      train_files, config_data, holdout=config_data.holdout, seed=seed
  )
  test, _ = encoded_split.load_split(test_files, config_data)
  return splits.Dataset(
      train, holdout, test, num_classes=len(train_files.class_names),
      class_names=train_files.class_names, channels=3,
      image_size=config_data.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD,
  )


def _held_out(root: pathlib.Path, class_names: Sequence[str]) -> pathlib.Path:
  """Returns the first of test/ and val/ whose folders are such classes."""
  test, val = root / 'test', root / 'val'
  if not (wrong := _misfit(test, class_names)):
    return test
  if val_wrong := _misfit(val, class_names):
    raise ValueError(
        f'There are no images to test with: {test} {wrong}, and {val}'
        f' {val_wrong}. Put those of each training class into {test}/CLASS/.'
    )
  if test.is_dir():
    logging.warning('%s %s: the test images are those of %s.', test, wrong, val)
  return val


def _misfit(directory: pathlib.Path, class_names: Sequence[str] | None) -> str:
  """Returns what is wrong with the class folders, '' if nothing is."""
  if not directory.is_dir():
    return 'does not exist'
  found = _folders(directory)
  if not found:
    return 'holds no class folder'
  unknown = set(found) - set(found if class_names is None else class_names)
  if unknown:
    return f'holds classes that the training images lack: {sorted(unknown)}'
  return ''


def _folders(directory: pathlib.Path) -> list[str]:
  return sorted(
      entry.name for entry in os.scandir(directory)
      if entry.is_dir() and not entry.name.startswith('.')
  )


def _image_files(directory: pathlib.Path) -> list[str]:
  files, walked = [], set()
  for parent, folders, names in os.walk(directory, followlinks=True):
    # A link may lead back to where it lies.
    real = os.path.realpath(parent)
    if real in walked:
      folders.clear()
      continue
    walked.add(real)
    # .ipynb_checkpoints and the like hold copies of images.
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    files += [
        os.path.join(parent, name) for name in names
        # macOS leaves ._name.jpg beside name.jpg; they are no images.
        if os.path.splitext(name)[1].lower() in EXTENSIONS
        and not name.startswith('.')
    ]
  return sorted(files)


def _read_bytes(path: str) -> bytes:
  with open(path, 'rb') as file:
    return file.read()
