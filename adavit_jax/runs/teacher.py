"""Reads the teacher of a run: another run, or a file of weights."""

import hashlib
import os
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from adavit_jax import models
from adavit_jax import weights
from adavit_jax.runs import checks
from adavit_jax.runs import history
from adavit_jax.runs import pretrained
from adavit_jax.runs import saved_run
from adavit_jax.train import config as config_lib
from adavit_jax.train import distillation
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
from adavit_jax.train import state as state_lib


class Loaded(NamedTuple):
  """A teacher with its parameters.

  Attributes:
    teacher: `distillation.Teacher`.
    params: its groups, folded, laid out as `sharded.put` does.
    digest: hash of its parameters, normalization and actions, by which a
      resumed run knows it again.
  """
  teacher: distillation.Teacher
  params: Any
  digest: str


def needed(trainer, saved):
  """Reads the teacher if a remaining phase learns from it.

  Args:
    trainer: `loop.Trainer`.
    saved: `saved_run.Saved` that the run resumes from, or None.

  Returns:
    `Loaded`, or None.

  Raises:
    ValueError: as `load`, and if a resumed run has another teacher than before.
  """
  config = trainer.config
  names = history.remaining(config.phases, saved and saved.info)
  if not set(names).intersection(config.teacher.phases):
    return None
  loaded = None
  if config_lib.has_teacher(config):
    loaded = load(config, trainer.system, trainer.dataset, trainer.mesh,
                  trainer.workdir)
  if saved is not None and digest(loaded) != digest(None, saved):
    raise ValueError(
        f'the teacher differs from the one that {trainer.workdir} began with: '
        f'its parameters have changed, or teacher.* names another one; give '
        f'the same teacher to resume, or another --workdir')
  return loaded


def digest(loaded, saved=None):
  """The `Loaded.digest`, else that of a checkpoint; '' without a teacher."""
  if loaded is not None:
    return loaded.digest
  return '' if saved is None else saved.info.get('taught_by', '')


def load(config, system, dataset, mesh, workdir):
  """Reads the teacher of a config.

  Args:
    config: see `train.config.default_config`; `teacher.workdir` or
      `teacher.weights` is set.
    system: `System` of the student.
    dataset: `Dataset` that it learns from.
    mesh: devices to put the parameters on.
    workdir: directory of the student's run.

  Returns:
    `Loaded`.

  Raises:
    ValueError: if there is no such run or file, or it does not fit the
      student's images and classes.
  """
  if config.teacher.workdir:
    teacher, params = _of_run(config, system, dataset, mesh, workdir)
  else:
    teacher, params = _of_file(config, system, dataset)
  digest = _digest(teacher, params)
  params = sharded.put(
      models.fold(teacher.model, mesh_lib.fetch(params)), mesh)
  logging.info('teacher: %s', teacher.model)
  return Loaded(teacher, params, digest)


def _of_run(config, system, dataset, mesh, workdir):
  """Returns (`Teacher`, groups) of a run."""
  source, c = config.teacher.workdir, config.teacher
  if _same_directory(source, workdir):
    raise ValueError(f'teacher.workdir={source!r} is the work directory of '
                     f'this run; give that of another run')
  with saved_run.Run(source) as run:
    # Every host reads all of it, see `_digest`.
    whole = mesh_lib.make_mesh(devices=list(mesh.devices.flat))
    info, there, state = saved_run.reread(lambda: _read(run, c.phase, whole))
  if there.target is not None:
    raise ValueError(f'teacher.workdir={source!r} holds a regression, which '
                     f'has no classes to teach')
  _check_fit(f'teacher.workdir={source!r}', there.model, system.model)
  checks.same_classes(info, dataset, source)
  after = there.after(info['phase'])
  actions = after.actions if after.decider == 'mask' else None
  teacher = distillation.Teacher(there.model, there.mean, there.std, actions)
  return teacher, state_lib.model_params(state_lib.final_params(state))


def _read(run, phase, mesh):
  """Returns (info, `System`, `State`) of the checkpoint to learn from."""
  saved = run.find(phase=phase)
  if not phase:
    run.warn_of_unfinished()
  there = saved_run.system(saved.info)
  return saved.info, there, run.state(saved, there, mesh)


def _of_file(config, system, dataset):
  """Returns (`Teacher`, groups) of a file."""
  c, student = config.teacher, system.model
  try:
    model = models.create(
        c.model, image_size=student.image_size, channels=student.channels,
        num_classes=student.num_classes, dtype=config.dtype)
    checkpoint = weights.read(c.weights)
    params = weights.load(model, checkpoint, jax.random.key(0), new_head=False,
                          class_names=dataset.class_names)
    images = pretrained.preprocessing_of(checkpoint, c.model)
  except ValueError as error:
    raise ValueError(f'teacher.weights={c.weights!r}, teacher.model='
                     f'{c.model!r}: {error}') from error
  _check_fit(f'teacher.weights={c.weights!r}', model, student)
  if len(images.mean) != student.channels:
    raise ValueError(f'teacher.weights={c.weights!r} normalizes '
                     f'{len(images.mean)} channels, but the images have '
                     f'{student.channels}')
  teacher = distillation.Teacher(model, tuple(map(float, images.mean)),
                                 tuple(map(float, images.std)))
  return teacher, state_lib.model_params(params)


def _same_directory(a, b):
  a, b = (x.rstrip('/') if '://' in x else os.path.realpath(
      os.path.expanduser(x)) for x in map(str, (a, b)))
  return a == b


def _check_fit(source, teacher, student):
  """Raises a ValueError if images or classes are not the student's."""
  for field in ('image_size', 'channels', 'num_classes'):
    there, here = getattr(teacher, field), getattr(student, field)
    if there != here:
      raise ValueError(
          f'{source} holds a model with {field}={there}, but the student has '
          f'{here} and both see the same images and classes; train a teacher '
          f'with {field}={here}')


def _digest(teacher, params):
  """Hashes what the logits depend on beside the config of the student."""
  actions = teacher.actions and [
      np.asarray(a).tolist() for a in teacher.actions]
  digest = hashlib.sha256(
      repr((teacher.mean, teacher.std, actions)).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(
      mesh_lib.fetch(params)):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]
