"""Labels images with a pretrained model's own predictions:

  python -m adavit_jax.inference.label_images --weights=FILE \\
      --model=vit_tiny_patch16_224 --data_dir=IMAGES --output=labels.json

IMAGES contains train/ and test/ or val/, with images in any folders below.
With --config.data.labels=labels.json, exits and policies are then trained for
agreement with the model, and every accuracy is that agreement: no image needs a
true label.
"""

import contextlib

from absl import app
from absl import flags
import jax
import numpy as np

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.data import encoded_split
from adavit_jax.data import folder
from adavit_jax.data import label_file
from adavit_jax.data import labelled_files
from adavit_jax.data import splits
from adavit_jax.evaluation import batched
from adavit_jax.runs import pretrained
from adavit_jax.runs import progress as progress_lib
from adavit_jax.runtime import modes
from adavit_jax.train import config as config_lib
from adavit_jax.train import guards
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import system as system_lib
from adavit_jax.weights import labels as labels_lib

_WEIGHTS = flags.DEFINE_string(
    'weights', None, 'File of pretrained weights.', required=True)
_MODEL = flags.DEFINE_string(
    'model', None, 'Name of its model.', required=True)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Directory with train/ and test/ or val/.', required=True)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'JSON file to write, for config.data.labels.',
    required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    'num_classes', 1000, 'K, the number of classes of the file.', 2)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images at a time.', 1)


def predict(config, num_classes):
  """Predicts the class of every image of a folder.

  Args:
    config: see `train.config.default_config`; `init.weights`, `model.name`,
      `data.data_dir`, `data.image_size` and `eval_batch_size` are read.
    num_classes: K.

  Returns:
    `label_file.Labels`.

  Raises:
    ValueError: if the file does not fit the model, or there are no images.
  """
  config = pretrained.with_preprocessing(config, None)
  parts = folder.unlabelled(config.data)
  root = folder.directory(config.data)
  names = tuple(map(str, range(num_classes)))
  for stated in labels_lib.stated(weights.read(config.init.weights)).values():
    if len(stated) == num_classes:
      names = tuple(stated)
  images = {
      part: encoded_split.lazy_parts(
          labelled_files.ImageFiles(
              root / part, files.values(), [0] * len(files),
              names), config.data)[0]
      for part, files in parts.items()}
  train, test = images.values()
  system = system_lib.create(config, splits.Dataset(
      train, train, test, num_classes=num_classes, class_names=names,
      channels=labelled_files.ImageFiles.channels,
      image_size=config.data.image_size, mean=folder.IMAGENET_MEAN,
      std=folder.IMAGENET_STD))
  mesh = mesh_lib.make_mesh()
  params = sharded.put(
      models.fold(system.model, pretrained.load(system)), mesh)
  program = jax.jit(
      lambda params, images: modes.forward(
          system.model, params, system.normalize(images)).total.argmax(-1),
      out_shardings=mesh_lib.replicated(mesh))
  labels = {}
  for part, files in parts.items():
    found = []
    with contextlib.closing(
        progress_lib.Progress(len(files), label=f'labels of {part}')) as shown:
      for valid, classes in batched.run_batches(
          images[part], np.arange(len(files)),
          lambda images, *_: program(params, images), mesh,
          config.eval_batch_size):
        found += classes[:valid].tolist()
        shown.update(len(found), len(found), {})
    labels.update(zip(files, found))
  return label_file.Labels(names, labels)


def main(argv):
  if argv[1:]:
    raise app.UsageError(f'unknown arguments {argv[1:]}')
  config = config_lib.default_config()
  # Its head is kept: no phase of these would train another one.
  config.phases = ('warm_start',)
  config.init.weights = _WEIGHTS.value
  config.model.name = _MODEL.value
  config.data.update(name='folder', data_dir=_DATA_DIR.value)
  try:
    config.data.image_size = models.create(_MODEL.value).image_size
    config.eval_batch_size = (
        _BATCH_SIZE.value + -_BATCH_SIZE.value % jax.device_count())
    labels = predict(config, _NUM_CLASSES.value)
    label_file.write(_OUTPUT.value, labels)
  except guards.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  print(f'wrote {len(labels.labels)} labels to {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)
