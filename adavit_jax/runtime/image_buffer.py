"""Images of a cascade on the device, and how they are split into batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# MACs that take as long as one more call of a stage: its dispatch, its gather
# and the slow start of small matrix products. Only the value for 'cpu' was
# measured.
_MACS_PER_CALL = {'cpu': 1e7, 'gpu': 1e10, 'tpu': 5e9}


def fastest_batches(sizes, macs_per_image, backend=None):
  """Plans the fastest split of m images into batches of the given sizes.

  A small remainder gets a separate batch if that takes less time than the empty
  rows of a larger batch.

  Args:
    sizes: batch sizes, ascending.
    macs_per_image: MACs of a stage for one image.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default backend.

  Returns:
    List: entry m is the tuple of batch sizes for m images, the largest first,
    for m = 0 to sizes[-1].
  """
  macs = _MACS_PER_CALL.get(backend or jax.default_backend(), 5e9)
  call = macs / macs_per_image
  best = [(0., ())]
  for num in range(1, sizes[-1] + 1):
    options = []
    for size in reversed(sizes):  # so that ties go to fewer calls
      time, plan = best[max(num - size, 0)]
      options.append((time + size + call, (size, *plan)))
    best.append(min(options, key=lambda option: option[0]))
  return [tuple(sorted(plan, reverse=True)) for _, plan in best]


class ImageBuffer:
  """Slots for images on the device, each with the state of its last stage.

  Rows are gathered from and scattered into arrays of fixed shapes, in place, so
  that the number of images that continue never causes a compilation. Use it
  from one thread at a time, and not after an exception, which may leave donated
  arrays.

  Attributes:
    capacity: number of slots.
  """

  def __init__(self, programs, images, capacity):
    """Reserves the memory.

    Args:
      programs: E functions `(images, state) -> (state, ...)` of one batch; the
        state is None before the first.
      images: an array with a leading batch axis, for its shape and dtype.
      capacity: number of slots.

    Raises:
      ValueError: if the programs do not accept such images.
    """
    self.capacity = capacity
    self._programs = programs
    row = jax.ShapeDtypeStruct((1, *images.shape[1:]), _dtype(images))
    states = []
    for program in programs[:-1]:
      before = states[-1] if states else None
      states.append(jax.eval_shape(program, row, before)[0])
    # An image has one state at a time, so stages whose states have the same
    # shapes share one pool.
    self._pool_of = [states.index(state) for state in states]
    self._pools = {k: self._zeros(states[k]) for k in set(self._pool_of)}
    self._images = self._zeros(row)

  def _zeros(self, row):
    return jax.tree.map(
        lambda x: jnp.zeros((self.capacity, *x.shape[1:]), x.dtype), row)

  def fits(self, images):
    """Returns whether the slots hold images of this shape and dtype."""
    return (images.shape[1:] == self._images.shape[1:]
            and _dtype(images) == self._images.dtype)

  def admit(self, images, slots, sizes):
    """Puts images [m, ...] into the slots [m], in batches of given sizes."""
    for start, rows in self._rows(slots, sizes):
      part = images[start:start + len(rows)]
      if len(part) < len(rows):
        padding = np.zeros((len(rows) - len(part), *part.shape[1:]), part.dtype)
        part = np.concatenate([part, padding])
      self._images = _put(self._images, rows, part)

  def run(self, stage, slots, sizes):
    """Runs a stage on the images of the given slots and keeps the new states.

    Args:
      stage: index of the stage.
      slots: [m] int.
      sizes: batch sizes whose sum is at least m.

    Returns:
      The outputs of the program after the state: a tuple of NumPy [m, ...].
    """
    outputs = []
    for _, rows in self._rows(slots, sizes):
      images = _take(self._images, rows)
      state = (_take(self._pools[self._pool_of[stage - 1]], rows) if stage else
               None)
      state, *output = self._programs[stage](images, state)
      if stage < len(self._pool_of):
        pool = self._pool_of[stage]
        self._pools[pool] = _put(self._pools[pool], rows, state)
      outputs.append(output)
    # Blocks once, after all batches were dispatched.
    outputs = jax.device_get(outputs)
    return tuple(np.concatenate(x)[:len(slots)] for x in zip(*outputs))

  def _rows(self, slots, sizes):
    start = 0
    for size in sizes:
      part = slots[start:start + size]
      # Padding rows are out of range: reads are clipped, writes are dropped.
      padding = self.capacity + np.arange(size - len(part))
      yield start, np.concatenate([part, padding]).astype(np.int32)
      start += size


def _dtype(array):
  """The dtype on the device, where NumPy's float64 becomes float32."""
  return jax.dtypes.canonicalize_dtype(array.dtype)


@jax.jit
def _take(pool, rows):
  return jax.tree.map(lambda x: x.at[rows].get(mode='clip'), pool)


@functools.partial(jax.jit, donate_argnums=0)
def _put(pool, rows, values):
  return jax.tree.map(
      lambda x, y: x.at[rows].set(y, mode='drop', unique_indices=True),
      pool, values)
