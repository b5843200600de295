"""Runs a frozen model once on augmented views of all training images.

A phase with `Phase.reads` then trains on what the model said of them. View v is
the v-th pass over the images, with the batches and the augmentation that the
phase would have in its first steps without views.
"""

import contextlib
import json
import pathlib
import socket
import zlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from adavit_jax import data
from adavit_jax import progress as progress_lib
from adavit_jax.data import batches as batches_lib
from adavit_jax.evaluation import batched
from adavit_jax.runs import history
from adavit_jax.runs import table_cache
from adavit_jax.runtime import stopping
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import step as step_lib

_PART = 4  # batches that are computed again if a run is killed


class Views:
  """A split of V n examples: view v of image i is example v n + i.

  Attributes:
    batch: `Batch` of all examples, NumPy arrays [V n, ...].
  """

  lazy = False

  def __init__(self, batch):
    self.batch, self.labels, self.meta = batch, batch.labels, {}

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    """Returns the `Batch` of int indices [b]."""
    return jax.tree.map(lambda x: x[indices], self.batch)


def check(system, dataset, saved=None):
  """Says how much memory the views of a run take; all processes call it.

  Args:
    system: `System`.
    dataset: `Dataset`.
    saved: `saved_run.Saved` that the run resumes from, or None.

  Raises:
    ValueError: if a host has less, before anything is computed.
  """
  for phase in history.remaining(system.config.phases, saved and saved.info):
    num = step_lib.num_views(system.config, phase)
    if not num:
      continue
    # All processes refuse or none: those that go on would wait for the others.
    free, host = map(np.ravel, multihost_utils.process_allgather((
        np.float32(_free_memory()),
        np.uint32(zlib.crc32(socket.gethostname().encode())))))
    free = min(free / [sum(host == x) for x in host])
    each = sum(np.prod(x.shape[1:], dtype=float) * x.dtype.itemsize
               for x in jax.tree.leaves(step_lib.view_shapes(system, phase)))
    size = each * num * len(dataset.train)
    if size > free:
      raise ValueError(
          f'{phase}.views={num} of {len(dataset.train)} images take '
          f'{size / 1e6:,.0f} MB of host memory, {each / 1e3:,.1f} KB each, '
          f'but {free / 1e6:,.0f} MB are free; set --config.{phase}.views '
          f'lower, or to 0 to run the model in every step')
    logging.info('%s.views=%d: %d views take %.0f MB of host memory', phase,
                 num, num * len(dataset.train), size / 1e6)


def _free_memory():
  """Bytes that programs may still take; infinity if the system does not say."""
  try:
    with open('/proc/meminfo') as file:
      sizes = dict(line.split(':', 1) for line in file)
    free = int(sizes['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError):
    free = float('inf')
  return min(free, _free_in_container(pathlib.Path('/sys/fs/cgroup')))


def _free_in_container(group):
  """Bytes that the limit of a control group leaves; infinity without one."""
  try:
    limit, used = (int((group / f'memory.{name}').read_text())
                   for name in ('max', 'current'))
    kinds = dict(line.split() for line in
                 (group / 'memory.stat').read_text().splitlines())
    # Files are dropped when memory is needed, but not those of /dev/shm.
    return limit - used + int(kinds['file']) - int(kinds['shmem'])
  except (OSError, ValueError, KeyError):
    return float('inf')


def read(trainer, state, phase, start, crop):
  """Runs the frozen model on all views, or reads from disk what it said.

  In a job of one process, the results are kept on disk part by part: a run that
  is stopped in between goes on where it was. In a job of several, every process
  has all of them in memory.

  Args:
    trainer: `loop.Trainer`.
    state: `State` during the phase.
    phase: its name.
    start: step at which it began.
    crop: `Crop` of images as they are read, or None.

  Returns:
    `Views`.

  Raises:
    Stopped: if a signal stopped the run.
  """
  config, split = trainer.config, trainer.dataset.train
  num, size = len(split), config[phase].batch_size
  total = num * step_lib.num_views(config, phase)
  steps = -(-total // size)
  views = jax.tree.map(lambda x: np.empty((total, *x.shape[1:]), x.dtype),
                       step_lib.view_shapes(trainer.system, phase))
  leaves = jax.tree.leaves(views)
  cache = table_cache.TableCache(
      trainer.workdir, f'{phase}_views', _inputs(trainer, state, phase, start),
      enabled=jax.process_count() == 1)
  with (contextlib.closing(progress_lib.Progress(
            total, label=f'{phase}, views')) as progress,
        contextlib.closing(_Outputs(
            trainer, state, phase, start, crop, steps)) as outputs):
    def say(step):
      done = min(step * size, total)
      progress.update(done, done, {})

    for first in range(0, steps, _PART):
      part = range(first, min(first + _PART, steps))
      arrays = cache.get(first, lambda: outputs.rows(part, say))
      places = np.concatenate([
          _places(config.seed + start, step, num, size) for step in part])
      for leaf, x in zip(leaves, arrays, strict=True):
        # NumPy's files do not name the type of bfloat16.
        leaf[places[places < total]] = x.view(leaf.dtype)[places < total]
      say(part.stop)
      stopping.check()
  return Views(views)


def _places(seed, step, num, size):
  """The examples of the rows of a batch, [B]; views follow one another."""
  positions = step * size + np.arange(size)
  return positions // num * num + batches_lib.batch_indices(
      seed, step, size=num, batch_size=size)


def _inputs(trainer, state, phase, start):
  """Returns all arrays that the views depend on; not the heads in training."""
  config, c = trainer.config, trainer.config[phase]
  frozen = {group: tree for group, tree in state.params.items()
            if group != 'heads'}
  fields = [step_lib.augmentation(config, phase).to_dict(),
            config.model.to_dict(), config.exits.to_dict(),
            config.nets.to_dict(), config.dtype, list(config.phases),
            config.seed, start, c.views, c.batch_size, c.distill > 0,
            trainer.system.mean, trainer.system.std]
  text = json.dumps(fields, sort_keys=True, default=str)
  return (frozen, jax.random.key_data(state.key), trainer.dataset.train.labels,
          np.frombuffer(text.encode(), np.uint8))


class _Outputs:
  """Runs the model on batches, as a rule in their order.

  While the caller of `rows` does other work, the next images are decoded and
  the devices go on.
  """

  def __init__(self, trainer, state, phase, start, crop, steps):
    self._trainer, self._phase, self._start = trainer, phase, start
    self._params, self._key = state.params, state.key
    self._crop, self._steps = crop, steps
    self._stream, self._next = iter(()), 0
    run = step_lib.make_batch(trainer.system, phase, cropped=crop is not None)

    def views(params, key, step, images, labels):
      augment_key, _ = step_lib.keys(key, step)
      return run(params, augment_key, images, labels)._replace(images=None)

    self._run = jax.jit(
        views, out_shardings=mesh_lib.replicated(trainer.mesh))

  def rows(self, part, say):
    """Returns the leaves [n, ...] of the `Batch`es of steps, a range.

    It calls say(number of steps that are done) after each but the last one.
    """
    if part.start != self._next or not part.start:
      self.close()
      self._stream = self._from(part.start)
    self._next, found = part.stop, []
    for step, batch in zip(part, self._stream):
      found.append(jax.tree.leaves(batch))
      if step + 1 < part.stop:
        say(step + 1)
    return tuple(map(np.concatenate, zip(*found)))

  def _from(self, first):
    """Yields `Batch`es of NumPy arrays, from a step of the phase on."""
    trainer, config = self._trainer, self._trainer.config
    def run(step, batch):
      images, labels = mesh_lib.shard_batch(
          (batch['image'], batch['label']), trainer.mesh)
      return self._run(self._params, self._key, np.int32(self._start + step),
                       images, labels)
    batches = data.train_batches(
        trainer.dataset.train, seed=config.seed + self._start, start_step=first,
        stop_step=self._steps, batch_size=config[self._phase].batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
        crop=self._crop, workers=config.data.workers)
    with contextlib.closing(batches):
      yield from batched.fetched(
          lambda item: run(*item), enumerate(batches, first))

  def close(self):
    """Ends what decodes images."""
    if hasattr(self._stream, 'close'):
      self._stream.close()
