"""The calls of a training program: how many steps they make, and of what."""

from collections.abc import Generator
import contextlib
from typing import NamedTuple

import jax
import numpy as np

from adavit_jax import data
from adavit_jax.runs import due
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import resident as resident_lib
from adavit_jax.train import step as step_lib


class Call(NamedTuple):
  """What a program is called with.

  Attributes:
    num: steps that it makes.
    inputs: its arguments after the state, on the devices.
  """
  num: int
  inputs: tuple


def program(trainer, step):
  """Returns what is called: a step on a batch, or steps on resident images.

  Args:
    trainer: `loop.Trainer`.
    step: from `step.make_step`.
  """
  if trainer.resident is None:
    return step
  return resident_lib.several(step, trainer.resident.shape)


def of_phase(
    trainer, split, phase, start, first, crop) -> Generator[Call]:
  """Yields the calls of `program` from a step of a phase on.

  Args:
    trainer: `loop.Trainer`.
    split: the examples of the phase.
    phase: one of the config's phases.
    start: step at which it began.
    first: the step, that of the state.
    crop: `crops.Crop`, or None, see `data.crop_on_reading`.
  """
  of = _of_batches if trainer.resident is None else _of_rows
  return of(trainer, split, phase, first - start, dict(
      seed=trainer.config.seed + start,
      batch_size=trainer.config[phase].batch_size,
      repeats=step_lib.augmentation(trainer.config, phase).repeats), crop)


def _of_batches(trainer, split, phase, done, options, crop):
  """Yields one step for each call, with its images and labels."""
  def on_devices(batches):
    with contextlib.closing(batches):
      for batch in batches:
        yield Call(1, mesh_lib.shard_batch(
            (batch['image'], batch['label']), trainer.mesh))

  return data.ahead(on_devices(data.train_batches(
      split, start_step=done, stop_step=trainer.config[phase].steps,
      process_index=jax.process_index(), process_count=jax.process_count(),
      crop=crop, workers=trainer.config.data.workers, **options)), split)


def _of_rows(trainer, split, phase, done, options, crop):
  """Yields several steps for each call, with the rows of their images."""
  del crop  # which the devices do
  size = len(split)
  resident = trainer.resident
  while done < trainer.config[phase].steps:
    num = due.steps_ahead(trainer.config, phase, done)
    rows = np.stack([
        data.batch_indices(step=step, size=size, **options)
        for step in range(done, done + num)])  # [num, B]
    yield Call(num, (resident.images, resident.labels,
                     resident_lib.put_rows(rows, trainer.mesh)))
    done += num
