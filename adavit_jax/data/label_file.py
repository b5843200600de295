"""Labels of image files in a JSON file, such as a model's predictions."""

import json
from typing import NamedTuple

from etils import epath

from adavit_jax import paths


class Labels(NamedTuple):
  """Classes of image files.

  Attributes:
    class_names: K names.
    labels: {path below the data directory, with slashes: class in 0..K-1}.
  """
  class_names: tuple[str, ...]
  labels: dict[str, int]


def write(path, labels: Labels) -> None:
  """Writes `Labels` to a file; a kill leaves the old file or the new one."""
  paths.write({path: json.dumps(labels._asdict(), indent=0)})


def read(path) -> Labels:
  """Reads `Labels` from a file.

  Raises:
    ValueError: if there is no such file, or it has other contents.
  """
  try:
    fields = json.loads(
        epath.Path(paths.expanded(path, 'config.data.labels')).read_text(
            encoding='utf-8'))
    labels = Labels(tuple(map(str, fields['class_names'])), fields['labels'])
    num = len(labels.class_names)
    wrong = [name for name, label in labels.labels.items()
             if type(label) is not int or not 0 <= label < num]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'config.data.labels={str(path)!r} cannot be read'
        f' ({type(error).__name__}: {error}): give a file that python -m'
        ' adavit_jax.inference.label_images has written') from error
  if wrong:
    raise ValueError(
        f'config.data.labels={str(path)!r} gives {wrong[0]!r} the class'
        f' {labels.labels[wrong[0]]!r}: it must be an integer in 0..{num - 1}')
  return labels
