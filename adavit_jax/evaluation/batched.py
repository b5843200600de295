"""Runs a program on the images of a split, in batches of one size."""

import contextlib

import jax
import numpy as np

from adavit_jax import progress as progress_lib
from adavit_jax.data import batches as batches_lib
from adavit_jax.runtime import stopping
from adavit_jax.train import mesh as mesh_lib


def collect(split, run, mesh, batch_size, places=None):
  """Runs a program on images of a split in batches of one size.

  Args:
    split: `Split`.
    run: (images uint8 [B, H, W, C], labels [B], rows [B]) -> tree of arrays
      [B, ...], replicated; rows are the images' indices in the split.
    mesh: from `mesh.make_mesh`.
    batch_size: the global batch size B.
    places: indices of the images to run, [n]; None runs all.

  Returns:
    The tree of NumPy arrays [n, ...].
  """
  if places is None:
    places = np.arange(len(split))
  batches = run_batches(
      split, places, lambda images, labels, rows, valid: run(
          images, labels, rows), mesh, batch_size)
  parts, done = [], 0
  with contextlib.closing(progress_lib.Progress(
      len(places), label='evaluation', quiet_s=10)) as progress:
    for valid, out in batches:
      parts.append(jax.tree.map(lambda x: x[:valid], out))
      done += valid
      progress.update(done, done, {})
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def run_batches(split, places, run, mesh, batch_size):
  """Runs a program on batches and yields their outputs.

  The outputs of a batch are fetched while the devices compute the next batch;
  images of a lazy split are decoded in parallel.

  Args:
    split: `Split`.
    places: indices of the images to run, [n].
    run: as in `collect`, with one more argument: the number of valid images.
      The others are padding, copies of the last one.
    mesh: from `mesh.make_mesh`.
    batch_size: the global batch size B.

  Yields:
    (number of valid images, tree of NumPy arrays [B, ...]).
  """
  counts = []  # of the batches that run

  def run_batch(batch):
    valid, rows, images, labels = batch
    counts.append(valid)
    images, labels = mesh_lib.shard_batch((images, labels), mesh)
    return run(images, labels, rows, valid)

  with contextlib.closing(batches_lib.ahead(
      _batches(split, places, batch_size), split)) as batches:
    for out in fetched(run_batch, batches):
      yield counts.pop(0), out


def fetched(run, batches):
  """Yields run(batch) of batches, as NumPy arrays.

  The devices compute the next batch while the caller works on one. A signal
  stops it between two batches.
  """
  running = []
  for batch in batches:
    stopping.check()
    running.append(run(batch))
    if len(running) == 2:
      yield mesh_lib.fetch(running.pop(0))
  for out in running:
    yield mesh_lib.fetch(out)


def _batches(split, places, batch_size):
  """Yields (number of valid images, rows, this process's images, labels)."""
  processes, index = jax.process_count(), jax.process_index()
  for start in range(0, len(places), batch_size):
    rows = places[start:start + batch_size]
    valid = len(rows)
    rows = np.pad(rows, (0, batch_size - valid), mode='edge')
    mine = np.split(rows, processes)[index]
    yield valid, rows, split.images(mine), split.labels[mine]
