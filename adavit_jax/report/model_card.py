"""Accuracy and MACs of a run in a file, for its card."""

from ml_collections import config_dict
import numpy as np

from adavit_jax import data
from adavit_jax import inference
from adavit_jax.runs import checks
from adavit_jax.runs import run_file

_BATCH = 1000  # images in memory


def measure(path, data_dir=''):
  """Classifies the test images of a run in a file.

  Args:
    path: path of the file.
    data_dir: directory of its data set, if that has files.

  Returns:
    dict of accuracy, macs (mean per image, over all tokens), macs_ratio (over
    the model with all layers and without exits), full_accuracy (with all layers
    and no early exit) and num_test.

  Raises:
    ValueError: if the data are others than those of the run, or the run is a
      regression.
  """
  saved = run_file.RunFile(path).find()
  config = config_dict.ConfigDict(saved.info['config'])
  config.data.data_dir = data_dir
  clf = inference.load(path)
  if clf.system.target is not None:
    raise ValueError(f'{path} holds a regression, which has no accuracy')
  dataset = data.load(config.data, seed=config.seed)
  # A copy of a tfds set may lack the names.
  if list(dataset.class_names) != list(map(str, range(dataset.num_classes))):
    checks.same_classes(saved.info, dataset, path)
  checks.same_images(saved.info, dataset, path)
  test, parts = dataset.test, []
  for start in range(0, len(test), _BATCH):
    places = np.arange(start, min(start + _BATCH, len(test)))
    images, labels = test.images(places), test.labels[places]
    prediction = clf(images)
    parts.append((prediction.labels == labels, prediction.macs,
                  clf.full(images).argmax(-1) == labels))
  right, macs, full = (float(np.concatenate(x).mean(dtype=np.float64))
                       for x in zip(*parts))
  return dict(
      accuracy=right, macs=macs,
      macs_ratio=macs / int(clf.system.plain_cost.dense), full_accuracy=full,
      num_test=len(test))
