"""The datasets that sources return: three splits and their metadata."""

from collections.abc import Mapping
import dataclasses
import hashlib
from typing import NamedTuple, Protocol

import numpy as np


class Split(Protocol):
  """n labeled images, in memory or decoded on access.

  Attributes:
    labels: int32 [n]; for regression float32 [n], in the target's unit.
    meta: arrays [n] by which a report may group images, e.g. 'hard' (bool).
    lazy: whether `images` is slow enough to prefetch in a thread. A lazy split
      of training images has `crops`, see `LazySplit`.
  """

  labels: np.ndarray
  meta: Mapping[str, np.ndarray]
  lazy: bool

  def __len__(self) -> int:
    ...

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [b, H, W, C] for int indices [b]."""


class ArraySplit:
  """A split in memory: images uint8 [n, H, W, C], labels [n].

  Floating-point labels are for regression and become float32, others int32.
  """

  lazy = False

  def __init__(
      self,
      images: np.ndarray,
      labels: np.ndarray,
      meta: Mapping[str, np.ndarray] | None = None,
      rows: np.ndarray | None = None,
  ):
    """Makes a split of some rows of an array, without a copy.

    Args:
      images: uint8 [m, H, W, C], which may be memory-mapped.
      labels: [n].
      meta: arrays [n], see `Split`.
      rows: int [n], the images of the split; None for all m = n of them.
    """
    self._images, self._rows = images, rows
    labels = np.asarray(labels)
    floating = np.issubdtype(labels.dtype, np.floating)
    self.labels = labels.astype(np.float32 if floating else np.int32)
    self.meta = dict(meta or {})

  def __len__(self) -> int:
    return len(self.labels)

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [b, H, W, C] for int indices [b]."""
    rows = indices if self._rows is None else self._rows[indices]
    return self._images[rows]


class Target(NamedTuple):
  """The normalization of regression labels.

  Attributes:
    mean: mean of the training labels.
    std: standard deviation of the training labels, not 0.
    unit: unit of labels and errors, e.g. 'degrees'.
  """

  mean: float
  std: float
  unit: str


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Labeled images for training, calibration and the final report.

  Attributes:
    train: training images.
    holdout: validation images, held out of `train` for calibration and model
      selection; empty if `config.data.holdout=0`.
    test: for the final report only; the same for every seed.
    num_classes: K; 0 for regression.
    class_names: K names.
    channels: C, 1 or 3.
    image_size: side of the model's input in pixels; images of the splits may be
      larger (`config.data.load_size`).
    mean: C floats in 0..1 units, mean of the images.
    std: C floats in 0..1 units, standard deviation of the images.
    target: normalization of the labels; None for classification.
    files: digest of the names of the image files, in order; '' where the source
      has none.
  """

  train: Split
  holdout: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  channels: int
  image_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  target: Target | None = None
  files: str = ''

  def __post_init__(self):
    for split in (self.train, self.holdout, self.test):
      floating = np.issubdtype(split.labels.dtype, np.floating)
      if len(split) and floating != (self.target is not None):
        raise ValueError(
            f'labels are {split.labels.dtype} and target={self.target}: give'
            ' integer classes and no target, or for regression floating-point'
            ' labels and a Target')


def stratified_split(
    labels: np.ndarray, count: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws about `count` of n examples, stratified by class.

  Class counts are rounded by largest remainder, and the seed chooses among
  equal ones. At least one example of each class is not drawn, so very small
  classes yield fewer than `count`.

  Args:
    labels: int [n].
    count: number of examples to draw, 0..n.
    seed: seed of the draw.

  Returns:
    Two sorted int64 arrays: the indices not drawn and those drawn.
  """
  rng = np.random.default_rng(seed)
  classes, sizes = np.unique(labels, return_counts=True)
  share = sizes * (count / max(len(labels), 1))
  quota = np.floor(share).astype(np.int64)
  missing = count - quota.sum()
  below = quota - share
  order = np.argsort(below, kind='stable')
  if 0 < missing < len(order) and (
      below[order[missing - 1]] == below[order[missing]]):
    # Otherwise it would be the first classes for every seed.
    order = np.random.default_rng([seed, 1]).permutation(len(order))
    order = order[np.argsort(below[order], kind='stable')]
  quota[order[:missing]] += 1
  quota = np.minimum(quota, sizes - 1)
  drawn = np.zeros(len(labels), bool)
  for label, n in zip(classes, quota):
    drawn[rng.permutation(np.flatnonzero(labels == label))[:n]] = True
  return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def fingerprint(dataset: Dataset) -> str:
  """Returns a digest of the labels of all splits, in order.

  It differs where images were added or removed, or others are held out, unless
  the labels stay the same: see `Dataset.files`.
  """
  digest = hashlib.sha256()
  for split in (dataset.train, dataset.holdout, dataset.test):
    labels = np.asarray(split.labels, np.float64)
    digest.update(f'{len(labels)} '.encode() + labels.tobytes())
  return digest.hexdigest()[:16]


def channel_stats(
    split: Split, *, sample: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation per channel, in 0..1 units.

  Args:
    split: at least one image [H, W, C].
    sample: maximum number of images to use, evenly spaced; None for all.

  Returns:
    Two tuples of C floats. The standard deviation is at least half a gray
    level, so that constant channels can be divided by it.
  """
  n = len(split)
  count = n if sample is None else min(n, sample)
  rows = np.linspace(0, n - 1, count).round().astype(np.int64)
  total = squares = 0
  # Chunks bound the memory of the uint32 copies; integer sums are exact.
  for start in range(0, count, 256):
    images = split.images(rows[start:start + 256]).astype(np.uint32)
    total += images.sum(0, dtype=np.uint64)
    squares += np.square(images).sum(0, dtype=np.uint64)
  channels = total.shape[-1]
  pixels = count * total.size // channels
  mean = total.reshape(-1, channels).sum(0) / pixels
  variance = squares.reshape(-1, channels).sum(0) / pixels - mean * mean
  std = np.sqrt(np.maximum(variance, 0.25))
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
