"""Image classification from TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Sequence
from concurrent import futures
import functools
import os
import time

from absl import logging
from etils import epath
import numpy as np

from adavit_jax import paths
from adavit_jax.data import cache
from adavit_jax.data import data_config as config_lib
from adavit_jax.data import encoded_split
from adavit_jax.data import splits
from adavit_jax.data import tfds_dir

_STATS_SAMPLE = 2048
_CHUNK = 1024


class Records:
  """One split of a prepared dataset: an `EncodedImages`."""

  def __init__(
      self, prepared: tfds_dir.PreparedDir, split: str, *, cache_dir: str
  ):
    self.channels = prepared.channels
    name = '-'.join(prepared.path.parts[-2:])
    self.label = f'{name}-{split}'
    self.key = dict(source='tfds', split=split, info=prepared.digest)
    self._prepared = prepared
    self._split = split
    self._cache_dir = cache_dir

  def __getstate__(self):
    return {name: value for name, value in vars(self).items()
            if name != '_source'}  # opened again in another process

  def __len__(self) -> int:
    return self._prepared.splits[self._split]

  def name(self, index: int) -> str:
    """Returns the index of the record and its split."""
    return f'Record {index} of {self._prepared.path}, split {self._split!r},'

  def labels(self) -> np.ndarray:
    """Returns int32 [n], from the cache or from all records."""
    return np.array(cache.cached(
        self._cache_dir, f'{self.label}-labels',
        dict(self.key, files=self.files(), only='labels'),
        self._read_labels))

  def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns the encoded image and the label of each record."""
    image, label = self._prepared.image_key, self._prepared.label_key
    return [
        (example[image], int(example[label]))
        for example in self._source.__getitems__(list(indices))
    ]

  def files(self) -> list[tuple[str, int, float]]:
    """Returns what tells the records of a set that is too large to digest."""
    return self._prepared.files(self._split)

  def digest(self, pool: futures.Executor) -> str:
    """Returns a digest of the split's files of records."""
    return self._prepared.content(self._split, pool)

  @functools.cached_property
  def _source(self):
    # The import takes 0.5 to 2 s.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(self._prepared.path))
    return builder.as_data_source(
        split=self._split,
        decoders={self._prepared.image_key: tfds.decode.SkipDecoding()})

  def _read_labels(self) -> np.ndarray:
    n = len(self)
    logging.info('Reading the %d labels of %s.', n, self.label)
    labels, shown = np.full(n, -1, np.int32), time.monotonic()
    for start in range(0, n, _CHUNK):
      rows = range(start, min(start + _CHUNK, n))
      labels[start:rows.stop] = [label for _, label in self.read(rows)]
      # A split has labels for all of its images or for none (-1).
      if labels[0] < 0:
        break
      if time.monotonic() - shown > 5:
        shown = time.monotonic()
        logging.info('Read %d of %d labels.', rows.stop, n)
    return labels


def labeled(config_data) -> tuple[Records, Records, tuple[str, ...]]:
  """Returns the records of the training and of the test split, and the classes.

  Raises:
    ValueError: as `load`.
  """
  records, candidates, class_names = _open(config_data)
  for test in candidates:
    # A split has labels for all of its images or for none (-1).
    if test.read([0])[0][1] >= 0:
      return records, test, class_names
  raise _no_test(config_data)


def load(config_data, *, seed: int) -> splits.Dataset:
  """Returns the dataset config.data.name='tfds:NAME'.

  Its directory is config.data.data_dir, else $TFDS_DATA_DIR, else the default
  of tfds; a missing dataset is downloaded only in the last case. The test split
  is 'test', or 'validation' if there is no labeled 'test'.

  Raises:
    ValueError: if the dataset or one of its splits is missing.
  """
  train_records, candidates, class_names = _open(config_data)
  train, holdout = encoded_split.load_split(
      train_records, config_data, holdout=config_data.holdout, seed=seed)
  for records in candidates:
    test, _ = encoded_split.load_split(records, config_data)
    if test.labels.min() >= 0:
      break
  else:
    raise _no_test(config_data)
  mean, std = _stats(train, train_records, config_data, seed)
  return splits.Dataset(
      train, holdout, test, num_classes=len(class_names),
      class_names=class_names, channels=train_records.channels,
      image_size=config_data.image_size, mean=mean, std=std)


def _open(config_data):
  """Returns the training records, those that may be the test split, classes."""
  prepared = tfds_dir.read(_prepared_path(config_data))
  if 'train' not in prepared.splits:
    raise ValueError(
        f"{prepared.path} has no split 'train', only {sorted(prepared.splits)}")
  records = functools.partial(
      Records, prepared, cache_dir=config_data.cache_dir)
  candidates = [records(name) for name in ('test', 'validation')
                if prepared.splits.get(name)]
  return records('train'), candidates, prepared.class_names


def _no_test(config_data):
  prepared = tfds_dir.read(_prepared_path(config_data))
  return ValueError(
      f"{prepared.path} has no labeled split 'test' or 'validation', only"
      f' {sorted(prepared.splits)}')


def _stats(train, records, config_data, seed):
  if not train.lazy:
    return splits.channel_stats(train)
  key = dict(
      records.key, files=records.files(), only='stats',
      size=config_lib.load_size(config_data),
      interpolation=config_lib.interpolation(config_data),
      holdout=config_data.holdout, seed=seed)
  mean, std = cache.cached(
      config_data.cache_dir, f'{records.label}-stats', key,
      lambda: np.array(splits.channel_stats(train, sample=_STATS_SAMPLE)),
  ).tolist()
  return tuple(mean), tuple(std)


def _prepared_path(config_data) -> epath.Path:
  name = config_data.name.removeprefix('tfds:')
  configured = config_data.data_dir or os.environ.get('TFDS_DATA_DIR')
  data_dir = epath.Path(paths.expanded(
      configured or tfds_dir.default_data_dir(), 'config.data.data_dir'))
  if configured and not data_dir.is_dir():
    field = 'config.data.data_dir' if config_data.data_dir else 'TFDS_DATA_DIR'
    raise ValueError(
        f'{field}={str(configured)!r} does not exist: give the directory with'
        f' {name.partition(":")[0]}/VERSION/dataset_info.json, or leave it'
        ' empty to download the dataset')
  path = tfds_dir.find(name, data_dir)
  if path is None and configured:
    raise ValueError(
        f'{str(data_dir)!r} holds no prepared {name!r}: there is no'
        f' {name.partition(":")[0]}/VERSION/dataset_info.json below it; set'
        ' config.data.data_dir to its tfds data_dir, or leave that and'
        ' TFDS_DATA_DIR empty to download the dataset')
  return path or _download(name)


def _download(name: str) -> epath.Path:
  import tensorflow_datasets as tfds  # See Records._source.

  logging.info('Downloading %s with tfds.', name)
  try:
    builder = tfds.builder(name, file_format='array_record')
    builder.download_and_prepare(file_format='array_record')
  except ImportError as error:
    raise ValueError(
        f"'tfds:{name}' is not prepared below {tfds_dir.default_data_dir()},"
        f' and tfds cannot prepare it here ({error}): prepare it once on a'
        ' machine with TensorFlow (pip install tensorflow; tfds build'
        f' {name} --file_format=array_record) and set config.data.data_dir to'
        ' its directory; reading it needs no TensorFlow'
    ) from error
  except ValueError as error:  # of many lines
    raise ValueError(
        f"config.data.name='tfds:{name}': {str(error).splitlines()[0]} Give"
        ' tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION') from error
  except OSError as error:
    raise ValueError(
        f"'tfds:{name}' is not prepared below {tfds_dir.default_data_dir()},"
        f' and could not be downloaded ({type(error).__name__}:'
        f' {str(error)[:200]}); set config.data.data_dir or TFDS_DATA_DIR to'
        ' the directory of a prepared dataset'
    ) from error
  return epath.Path(builder.data_path)
