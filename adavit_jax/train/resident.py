"""Several training steps in one program, on images that the devices hold.

The host dispatches the program once for all of these steps, and sends the
numbers of the images in place of the images. Where a model is small, dispatch
may take longer than the step itself.
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib


class Resident(NamedTuple):
  """Training images; each device holds all of them.

  Attributes:
    images: uint8 [n, H * W * C]. TPUs pad the last axis of an array, which for
      [n, H, W, C] would be the channels.
    labels: [n] int32, float32 for regression.
    shape: (H, W, C).
  """
  images: Any
  labels: Any
  shape: tuple[int, int, int]


def check(config, split):
  """Checks that the devices can hold a split if its config needs that.

  Args:
    config: see `train.config.default_config`.
    split: the training images.

  Raises:
    ValueError: if `steps_per_call` is more than 1, and the split is lazy or a
      phase has `views`.
  """
  if config.steps_per_call == 1:
    return
  for phase in config.phases:
    num = step_lib.num_views(config, phase)
    if num:
      raise ValueError(
          f'steps_per_call={config.steps_per_call} takes images, but with '
          f'{phase}.views={num} the phase takes what the host holds of them; '
          f'set steps_per_call=1, or {phase}.views=0')
  if split.lazy:
    raise ValueError(
        f'steps_per_call={config.steps_per_call} holds all training images on '
        f'the devices, but those of {config.data.name!r} are decoded while it '
        f'trains, since they are packed or have more than 2 GiB of pixels; set '
        f'steps_per_call=1')


def put(split, mesh) -> Resident:
  """Puts a split on the devices.

  Args:
    split: n images, equal in all processes.
    mesh: from `mesh.make_mesh`.
  """
  images = split.images(np.arange(len(split)))
  everywhere = mesh_lib.replicated(mesh)
  return Resident(
      _global(images.reshape(len(images), -1), everywhere),
      _global(split.labels, everywhere), images.shape[1:])


def put_rows(rows, mesh):
  """Puts the rows of `several` on the devices that train on them.

  Args:
    rows: int [k, B], equal in all processes.
    mesh: from `mesh.make_mesh`.
  """
  return _global(rows.astype(np.int32), rows_sharding(mesh))


def rows_sharding(mesh):
  """Splits the second axis of an array [k, B] over the devices."""
  return NamedSharding(mesh, PartitionSpec(None, mesh_lib.AXES))


def several(step, shape):
  """Makes a program of several steps.

  Args:
    step: from `step.make_step`.
    shape: (H, W, C) of an image.

  Returns:
    A pure function (state, images, labels, rows) -> (state, metrics), to be
    jitted as `step`. Images and labels are those of `Resident`; the i-th of k
    steps takes the images rows[i], int32 [k, B]. Metrics are [k, ...]. A fifth
    argument is the fourth one of `step`.
  """
  def steps(state, images, labels, rows, *taught_by):
    def one(state, rows):
      batch = images[rows].reshape(-1, *shape)  # [B, H, W, C]
      return step(state, batch, labels[rows], *taught_by)
    return jax.lax.scan(one, state, rows)
  return steps


def each(metrics):
  """Returns the metrics of every step, from those of programs.

  Args:
    metrics: list of dicts of arrays [k, ...], each of a program's k steps.
  """
  return [{name: values[i] for name, values in program.items()}
          for program in metrics
          for i in range(len(next(iter(program.values()))))]


def _global(x, sharding):
  # device_put would compare the arrays of all processes.
  return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])
