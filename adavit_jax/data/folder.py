"""A folder of images: root/train/CLASS/* and root/test/CLASS/* or root/val."""

from collections.abc import Sequence
from concurrent import futures
import hashlib
import os
import pathlib

import numpy as np

from adavit_jax.data import load_encoded
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
      ValueError: there is no class folder, an empty one, or one that
        `class_names` lacks.
    """
    found = _folders(directory)
    if not found:
      raise ValueError(
          f'{directory} holds no class folder: put the images of each class'
          f' into {directory}/CLASS/.'
      )
    if class_names is None:
      class_names = found
    if unknown := sorted(set(found) - set(class_names)):
      raise ValueError(
          f'{directory} holds classes that the training images lack:'
          f' {unknown}. Add them to the training images or remove them.'
      )
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

  Mean and deviation are ImageNet's, which pretrained weights expect.

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
  held_out = [root / name for name in ('test', 'val') if (root / name).is_dir()]
  if not held_out:
    raise ValueError(
        f'{root} holds neither test/ nor val/: put the images to test with'
        f' into {root}/test/CLASS/.'
    )
  train_files = ImageFiles(root / 'train')
  if len(train_files.class_names) < 2:
    raise ValueError(
        f"{root / 'train'} holds only the class {train_files.class_names[0]!r}:"
        ' its folders are the classes, train/CLASS/*.'
    )
  test_files = ImageFiles(held_out[0], train_files.class_names)
  train, holdout = load_encoded.load_split(
      train_files, config_data, holdout=config_data.holdout, seed=seed
  )
  test, _ = load_encoded.load_split(test_files, config_data)
  return splits.Dataset(
      train, holdout, test, num_classes=len(train_files.class_names),
      class_names=train_files.class_names, channels=3,
      image_size=config_data.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD,
  )


def _folders(directory: pathlib.Path) -> list[str]:
  return sorted(
      entry.name for entry in os.scandir(directory)
      if entry.is_dir() and not entry.name.startswith('.')
  )


def _image_files(directory: pathlib.Path) -> list[str]:
  files = []
  for parent, _, names in os.walk(directory, followlinks=True):
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
