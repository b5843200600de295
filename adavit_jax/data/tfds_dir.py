"""Metadata of prepared tfds datasets, read without importing tfds.

The import alone takes longer than everything else at a start from the cache.
"""

from concurrent import futures
import dataclasses
import hashlib
import json
import os
import re

from etils import epath

from adavit_jax import paths

_VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
_READABLE = ('array_record', 'parquet')


@dataclasses.dataclass(frozen=True)
class PreparedDir:
  """A directory with dataset_info.json and features.json.

  Attributes:
    path: .../NAME[/CONFIG]/VERSION.
    splits: number of examples of each split.
    image_key: name of the image feature.
    label_key: name of the class label feature.
    channels: 1 or 3.
    class_names: K names; '0', '1', ... if the dataset has none.
    digest: digest of the contents of the two files.
  """

  path: epath.Path
  splits: dict[str, int]
  image_key: str
  label_key: str
  channels: int
  class_names: tuple[str, ...]
  digest: str

  def files(self, split: str) -> list[tuple[str, int, float]]:
    """Returns name, size in bytes and time of the files of a split."""
    return [(path.name, stat.length, stat.mtime)
            for path in self._records(split) for stat in [path.stat()]]

  def content(self, split: str, pool: futures.Executor) -> str:
    """Returns a digest of the contents of the files of a split."""
    digest = hashlib.sha256()
    for content in pool.map(_content, self._records(split)):
      digest.update(content)
    return digest.hexdigest()

  def _records(self, split):
    # NAME-SPLIT.array_record-00000-of-00001; sets may have names of their own,
    # and then all files count.
    files = list(_files(self.path))
    named = [path for path in files if f'-{split}.' in path.name]
    return sorted(named or files)


def default_data_dir() -> epath.Path:
  """Returns $TFDS_DATA_DIR, else the default of tfds."""
  return epath.Path(paths.expanded(
      os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets',
      'TFDS_DATA_DIR'))


def find(name: str, data_dir: epath.Path) -> epath.Path | None:
  """Returns the directory of a prepared dataset, or None.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; by default the
      highest version.
    data_dir: the data_dir of tfds.

  Raises:
    ValueError: if the name lacks a config.
  """
  base, _, version = name.partition(':')
  folder = data_dir / base
  if not folder.is_dir():
    return None
  prepared = _versions(folder)
  if not prepared:
    configs = sorted(
        child.name for child in folder.iterdir()
        if child.is_dir() and _versions(child))
    if configs:
      raise ValueError(
          f"config.data.name='tfds:{name}' lacks a config: give"
          f' tfds:{base}/CONFIG with one of {configs}')
  if version:
    return prepared.get(version)
  return max(prepared.items(), key=_version_number)[1] if prepared else None


def read(path: epath.Path) -> PreparedDir:
  """Reads the metadata from the JSON files of a directory.

  Raises:
    ValueError: if a file is missing, the records need TensorFlow, or the
      dataset has no image or no class label.
  """
  texts = []
  for name in ('dataset_info.json', 'features.json'):
    if not (path / name).exists():
      raise ValueError(
          f'{path / name} is missing: prepare the dataset again')
    texts.append((path / name).read_text())
  info, features = map(json.loads, texts)
  file_format = info.get('fileFormat', 'tfrecord')
  if file_format not in _READABLE:
    raise ValueError(
        f'{path} is stored as {file_format}, which only TensorFlow reads:'
        ' prepare it again with tfds build --file_format=array_record')
  try:
    image_key, label_key = (
        item['featureKey'] for item in info['supervisedKeys']['tuple']['items'])
  except (KeyError, ValueError):
    image_key, label_key = 'image', 'label'
  table = features.get('featuresDict', {}).get('features', {})
  image = table.get(image_key, {}).get('image')
  label = table.get(label_key, {}).get('classLabel')
  if image is None or label is None:
    raise ValueError(
        f'{path} has no image with a class label: its features are'
        f' {sorted(table)}')
  dimensions = image.get('shape', {}).get('dimensions', [])
  return PreparedDir(
      path=path,
      splits={
          split['name']: sum(map(int, split.get('shardLengths', [])))
          for split in info['splits']
      },
      image_key=image_key,
      label_key=label_key,
      channels=1 if dimensions and str(dimensions[-1]) == '1' else 3,
      class_names=_class_names(path, label_key, int(label['numClasses'])),
      digest=hashlib.sha256('\0'.join(texts).encode()).hexdigest())


def _files(folder):
  """Yields the files below a folder."""
  for child in folder.iterdir():
    if child.is_dir():
      yield from _files(child)
    else:
      yield child


def _content(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'blake2b').digest()


def _versions(folder: epath.Path) -> dict[str, epath.Path]:
  return {
      child.name: child for child in folder.iterdir()
      if _VERSION.fullmatch(child.name)
      and (child / 'dataset_info.json').exists()
  }


def _version_number(item: tuple[str, epath.Path]) -> tuple[int, ...]:
  return tuple(map(int, item[0].split('.')))


def _class_names(
    path: epath.Path, label_key: str, num_classes: int
) -> tuple[str, ...]:
  file = path / f'{label_key}.labels.txt'
  if file.exists():
    names = tuple(file.read_text().split('\n'))[:num_classes]
    if len(names) == num_classes:
      return names
  return tuple(map(str, range(num_classes)))
