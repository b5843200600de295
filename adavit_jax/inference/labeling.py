"""The classes that a pretrained model predicts for the images of a folder."""

import contextlib

import jax
import numpy as np

from adavit_jax import models
from adavit_jax import progress as progress_lib
from adavit_jax import weights
from adavit_jax.data import encoded_split
from adavit_jax.data import folder
from adavit_jax.data import label_file
from adavit_jax.data import labeled_files
from adavit_jax.data import splits
from adavit_jax.evaluation import batched
from adavit_jax.runs import pretrained
from adavit_jax.runtime import modes
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import system as system_lib
from adavit_jax.weights import labels as labels_lib


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
  parts = folder.unlabeled(config.data)
  root = folder.directory(config.data)
  names = tuple(map(str, range(num_classes)))
  for stated in labels_lib.stated(weights.read(config.init.weights)).values():
    if len(stated) == num_classes:
      names = tuple(stated)
  images = {
      part: encoded_split.lazy_parts(
          labeled_files.ImageFiles(
              root / part, files.values(), [0] * len(files),
              names), config.data)[0]
      for part, files in parts.items()}
  train, test = images.values()
  system = system_lib.create(config, splits.Dataset(
      train, train, test, num_classes=num_classes, class_names=names,
      channels=labeled_files.ImageFiles.channels,
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
