"""`train.py --compile_for`: what the phases of a config take on other devices.
"""

import json
import types

from absl import logging
import jax

from adavit_jax import data
from adavit_jax import errors
from adavit_jax import models
from adavit_jax import paths
from adavit_jax.ahead import forecast as forecast_lib
from adavit_jax.ahead import forecast_table
from adavit_jax.ahead import targets
from adavit_jax.data import folder
from adavit_jax.runs import saved_run
from adavit_jax.train import accumulate
from adavit_jax.train import config as config_lib
from adavit_jax.train import distillation
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import phases
from adavit_jax.train import resident
from adavit_jax.train import system as system_lib


def compile_for(config, name, workdir=None):
  """Prints what each phase of a config takes, and writes it as JSON.

  Nothing is trained, and images are not needed: if the data cannot be loaded,
  they are taken to have 3 channels and ImageNet's 1000 classes. Only
  `steps_per_call` needs their number. Each phase is printed and written as soon
  as it is compiled.

  Args:
    config: see `train.config.default_config`.
    name: devices to compile for, see `targets.find`.
    workdir: directory for `compile_for/NAME.json`; None writes none.

  Returns:
    The JSON value, see `to_json`.

  Raises:
    ValueError: if the config is invalid, its batches or mesh do not fit the
      devices, the file cannot be written, or `steps_per_call` is more than 1
      and the images are not in memory.
  """
  config_lib.check(config)
  config_lib.check_value_policy(config)
  path = None if workdir is None else paths.to_write(
      f'{paths.expanded(workdir, "workdir")}/compile_for/'
      f'{name.replace(":", "_")}.json', 'workdir')
  target = targets.find(name)
  mesh = mesh_lib.make_mesh(
      config.mesh.data, config.mesh.fsdp, devices=target.devices)
  accumulate.check(config, mesh)
  dataset, num_images = _dataset(config), 0
  if config.steps_per_call > 1:
    resident.check(config, dataset.train)
    num_images = len(dataset.train)
  system = system_lib.create(config, dataset)
  phases.check(system)
  taught = _teacher(config, system)
  print(forecast_table.heading(system, target, mesh), flush=True)
  rows = []
  for phase in config.phases:
    learns = taught if phase in config.teacher.phases else None
    rows.append(forecast_lib.of_phase(
        system, phase, target, mesh, learns, num_images))
    print(forecast_table.row(rows[-1]), flush=True)
    value = to_json(config, target, mesh, rows)
    if path is not None:
      path.write_text(json.dumps(value, indent=1))
  print(forecast_table.NOTES)
  if path is not None:
    print(f'written to {path}')
  return value


def to_json(config, target, mesh, rows):
  """Returns the JSON value of forecasts: bytes, FLOPs and seconds.

  Args:
    config: of the run.
    target: `targets.Target`.
    mesh: its mesh.
    rows: list of `Forecast`.
  """
  return dict(
      compile_for=target.name, chip=target.kind, chips=target.chips,
      devices_per_chip=target.per_chip, peak_tflops_per_chip=target.tflops,
      usable_bytes_per_device=target.usable, mesh=dict(mesh.shape),
      jax=jax.__version__, model=config.model.name, dtype=config.dtype,
      phases={row.phase: {
          **row._asdict(), 'collectives': row.collectives and {
              kind: sent._asdict() for kind, sent in row.collectives.items()}}
              for row in rows})


def _dataset(config):
  """Returns the data set of a config, or what stands for it."""
  try:
    return data.load(config.data, seed=config.seed)
  except errors.USER_ERRORS as error:
    if config.steps_per_call > 1:
      raise ValueError(
          f'steps_per_call={config.steps_per_call} holds all training images '
          f'on the devices, and --compile_for needs their number, but they '
          f'cannot be loaded ({error}); set steps_per_call=1, or data.data_dir'
      ) from error
    logging.info('the data cannot be loaded (%s): 1000 classes and 3 channels '
                 'are assumed', str(error).splitlines()[0])
    return types.SimpleNamespace(
        num_classes=1000, channels=3, mean=folder.IMAGENET_MEAN,
        std=folder.IMAGENET_STD, target=None)


def _teacher(config, system):
  """Returns (`Teacher`, shapes of its folded groups), or None; reads no arrays.
  """
  if not config_lib.has_teacher(config):
    return None
  c, student = config.teacher, system.model
  if c.workdir:
    with saved_run.Run(c.workdir) as run:
      there = saved_run.system(run.find(phase=c.phase).info)
    model, mean, std = there.model, there.mean, there.std
  else:
    model, mean, std = models.create(
        c.model, image_size=student.image_size, channels=student.channels,
        num_classes=student.num_classes, dtype=config.dtype
    ), system.mean, system.std
  shapes = jax.eval_shape(lambda: models.fold(
      model, models.init_params(model, jax.random.key(0))))
  return distillation.Teacher(model, mean, std), shapes
