"""Images in a folder for each class, and the accuracy of a program on them."""

import collections
import pathlib

import numpy as np

from adavit_jax import data
from adavit_jax.data import decode
from adavit_jax.data import image_files


def files(directory, most):
  """Finds the images of a directory with a folder for each class.

  Args:
    directory: path.
    most: images of each class at most; None for all.

  Returns:
    [(path, index of its folder)]; the folders are in the order of training.

  Raises:
    ValueError: if there are none.
  """
  root, left_out = pathlib.Path(directory).expanduser(), collections.Counter()
  folders = image_files.class_folders(root, left_out) if root.is_dir() else []
  found = []
  for i, folder in enumerate(folders):
    paths = image_files.find(root / folder, left_out)
    found += [(pathlib.Path(path), i) for path in paths[:most]]
  image_files.warn(root, left_out)
  if not found:
    raise ValueError(f'--data={directory} has no images in class folders')
  return found


def read(found, size):
  """Returns uint8 images [n, S, S, 3] of `files`, the whole image resized."""
  return np.stack([decode.decode_image(path.read_bytes(), size=size)
                   for path, _ in found])


def normalized(images, preprocessing):
  """Returns float32 images for a `weights.Preprocessing`."""
  return np.asarray(data.normalize(
      images, preprocessing.mean, preprocessing.std))


def logits(program, images, batch, preprocessing):
  """Runs a program of `batch` normalized images on all images: [n, K]."""
  rows = []
  for start in range(0, len(images), batch):
    part = normalized(images[start:start + batch], preprocessing)
    rows.append(np.asarray(program(
        np.pad(part, ((0, batch - len(part)), *((0, 0),) * 3)))))
  return np.concatenate(rows)[:len(images)]


def accuracies(logits, found, classes):
  """Top-1 accuracy among all classes, and among those of the folders.

  Args:
    logits: [n, K].
    found: from `files`.
    classes: index of the class of each folder.

  Returns:
    dict.
  """
  folders = np.array([folder for _, folder in found])
  wanted = np.array(classes)[folders]
  return dict(
      accuracy=float((logits.argmax(-1) == wanted).mean()),
      accuracy_among=float(
          (logits[:, np.array(classes)].argmax(-1) == folders).mean()))
