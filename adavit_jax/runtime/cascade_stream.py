"""A stream of images through a cascade: each stage runs full batches.

Images wait in a queue before each stage until they fill the largest batch size.
"""

import collections

import numpy as np


class Stream:
  """Runs the images of one source; iterate over it for the predictions.

  An image that was read has a number, its place in the source, and until it
  leaves a slot, its place in the `ImageBuffer`.
  """

  def __init__(self, cascade, images, window):
    """Reads nothing yet.

    Args:
      cascade: `Cascade`.
      images: iterable of [S, S, C].
      window: the most images that may be read but not yet yielded, at least the
        cascade's batch size.
    """
    self._cascade, self._window = cascade, window
    self._size = cascade.batch_size
    self._source = _Source(images)
    self._buffer = None  # made for the shape of the first image
    self._queues = [collections.deque() for _ in range(cascade.num_stages)]
    self._free = []  # slots
    self._numbers = {}  # slot -> number of the image in it
    self._macs = None  # per slot, MACs of the image in it so far
    self._done = {}  # number -> prediction, until it is yielded
    self._num_yielded = 0

  def __iter__(self):
    self._cascade.guard.check()
    while (stage := self._next_stage()) is not None:
      self._run(stage)
      while self._num_yielded in self._done:
        yield self._done.pop(self._num_yielded)
        self._num_yielded += 1
    if self._source.error is not None:
      raise self._source.error

  def _next_stage(self):
    """Returns the stage to run, after reading images if no batch is full.

    None if the source is exhausted and every image has left.
    """
    while True:
      full = [k for k, queue in enumerate(self._queues)
              if len(queue) >= self._size]
      if full:
        return full[-1]
      if self._source.read - self._num_yielded + self._size > self._window:
        return self._stage_of_oldest()
      if not self._read():
        # The first stage goes first, so that late batches are large.
        return next((k for k, queue in enumerate(self._queues) if queue), None)

  def _stage_of_oldest(self):
    # Each queue is in order: the oldest image is at the head of one.
    return min((k for k, queue in enumerate(self._queues) if queue),
               key=lambda k: self._numbers[self._queues[k][0]])

  def _read(self):
    """Reads a batch into the first queue; returns whether there was an image.
    """
    first = self._source.read
    images = self._source.take(self._size)
    if not images:
      return False
    images = np.stack(images)
    if self._buffer is None:
      self._buffer = self._cascade.make_buffer(images, stream=True)
      self._free = list(range(self._buffer.capacity))
      self._macs = np.zeros(self._buffer.capacity, self._cascade.macs_dtype)
    slots = [self._free.pop() for _ in images]
    self._numbers.update(zip(slots, range(first, self._source.read)))
    self._macs[slots] = 0
    self._cascade.admit(self._buffer, images, np.array(slots))
    self._queues[0].extend(slots)
    return True

  def _run(self, stage):
    """Runs a stage on the oldest images in its queue."""
    queue = self._queues[stage]
    slots = np.array(
        [queue.popleft() for _ in range(min(self._size, len(queue)))])
    logits, macs, leave = self._cascade.run_stage(self._buffer, stage, slots)
    self._macs[slots] += macs
    if stage + 1 < len(self._queues):
      self._queues[stage + 1].extend(slots[~leave].tolist())
    slots = slots[leave]
    predictions = self._cascade.predict(
        logits[leave], np.full(len(slots), stage), self._macs[slots])
    for slot, prediction in zip(slots.tolist(), predictions.unstack()):
      self._free.append(slot)
      self._done[self._numbers.pop(slot)] = prediction


class _Source:
  """Reads images in groups, checks that they are alike and counts them."""

  def __init__(self, images):
    self._images = iter(images)
    self._like = None  # shape and dtype of the first image
    self.read = 0
    self.error = None  # that ended the source

  def take(self, num):
    """Returns up to `num` images, fewer only at the end of the source."""
    group = []
    try:
      while len(group) < num and self.error is None:
        group.append(self._checked(np.asarray(next(self._images))))
    except StopIteration:
      pass
    except Exception as error:  # of any type
      self.error = error
    return group

  def _checked(self, image):
    like = image.shape, str(image.dtype)
    self._like = self._like or like
    if like != self._like:
      raise ValueError(
          'image {} has shape {} and dtype {}, but the first image has {} '
          'and {}; give all images one shape and dtype'.format(
              self.read, *like, *self._like))
    self.read += 1
    return image
