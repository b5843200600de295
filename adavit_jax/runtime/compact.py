"""The passes of the mode `compact`: a layer runs only on rows that keep it."""

import jax
import jax.numpy as jnp

from adavit_jax.runtime import branches

# MACs of one pass: enough to hide its gather, its scatter and the start of its
# matrix products, and few enough that its activations stay in the cache
# (benchmarks/execution.py --chunks). Only the value for 'cpu' was measured.
_MACS_PER_PASS = {'cpu': 2.5e8, 'gpu': 1e10, 'tpu': 5e9}

# Number of sizes of the last, smaller pass. More sizes waste fewer padded rows
# and take longer to compile.
_SIZES = 8


def chunk_size(batch_size, macs_per_row, backend=None):
  """Returns the rows per pass of `residual`: a power of two, or all rows.

  Args:
    batch_size: B.
    macs_per_row: MACs of the function for one row.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default backend.

  Returns:
    C, 1 <= C <= B.
  """
  wanted = _MACS_PER_PASS.get(backend or jax.default_backend(), 5e9)
  chunk = 1
  while chunk < batch_size and chunk * macs_per_row < wanted:
    chunk *= 2
  return min(chunk, batch_size)


def pass_sizes(chunk, most=_SIZES):
  """Returns the sizes of the last pass, ascending; the largest fits C - 1 rows.

  Args:
    chunk: C, rows of a full pass.
    most: maximum number of evenly spaced sizes. A quarter of a step is added
      as the smallest size if it is 2 or more, because under a trained policy
      few images keep many of the layers.
  """
  step = -(-chunk // most)
  even = [min(size, chunk) for size in range(step, chunk - 1 + step, step)]
  small = step // 4
  return [small, *even] if small >= 2 else even


def residual(run, x, keep, chunk, most=_SIZES):
  """Returns x + run(x) in the kept rows; other rows are not computed.

  A loop runs full passes of `chunk` kept rows. The remaining kept rows run in
  one pass of the smallest size that holds them, chosen by a switch. The program
  contains `run` once per size: `keep` changes trip counts and the branch taken,
  never shapes.

  Args:
    run: function of rows that returns what is added to them: for an array
      [C, N, ...] an array [C, n, ...], added to the first n <= N tokens; for a
      dict some of its keys.
    x: [B, N, ...], or a dict of arrays [B, ...].
    keep: [B], 1 or True runs the row, 0 or False leaves it unchanged.
    chunk: rows per pass, from `chunk_size`.
    most: see `pass_sizes`.

  Returns:
    x with the kept rows updated.
  """
  size = len(keep)
  chunk = min(chunk, size)
  wanted = keep.astype(bool)
  num = wanted.sum(dtype=jnp.int32)
  # Kept rows come first, in order. The places after them hold out-of-range
  # rows: reads are clipped and writes are dropped.
  places = jnp.arange(size + chunk)
  order = jnp.argsort(~wanted, stable=True)
  order = jnp.concatenate([order, jnp.zeros(chunk, order.dtype)])
  order = jnp.where(places < num, order, size + places)
  known = dict(indices_are_sorted=True, unique_indices=True)

  def rows_of(start, length):
    return jax.lax.dynamic_slice(order, (start,), (length,))

  def passed(x, start, length):
    rows = rows_of(start, length)
    taken = jax.tree.map(lambda a: a.at[rows].get(mode='clip', **known), x)
    return _sum(taken, run(taken))

  def written(x, start, y):
    rows = rows_of(start, len(jax.tree.leaves(y)[0]))
    put = lambda a, y: a.at[rows, *_first(y)].set(y, mode='drop', **known)
    if isinstance(x, dict):
      return {**x, **{key: put(x[key], part) for key, part in y.items()}}
    return put(x, y)

  def whole(i, x):
    # A pass of all rows needs no gather.
    if chunk == size:
      return branches.add(x, run(x))
    return written(x, i * chunk, passed(x, i * chunk, chunk))

  full = num // chunk
  x = jax.lax.fori_loop(0, full, whole, x)
  sizes, done = pass_sizes(chunk, most), full * chunk
  if not sizes:
    return x

  def last(_, x):
    def padded(length):
      def branch(x):
        return jax.tree.map(
            lambda y: jnp.pad(y, ((0, sizes[-1] - length),
                                  *((0, 0),) * (y.ndim - 1))),
            passed(x, done, length))
      return branch
    which = (num - done > jnp.asarray(sizes)).sum()
    return written(x, done, jax.lax.switch(which, list(map(padded, sizes)), x))

  # A loop of at most one iteration works in place; `lax.cond` would copy x
  # (observed on CPU).
  return jax.lax.fori_loop(0, (num > done).astype(jnp.int32), last, x)


def _sum(x, y):
  """Adds y to the tokens of x that it covers, and returns these alone."""
  if isinstance(x, dict):
    return {key: _sum(x[key], part) for key, part in y.items()}
  return x[:, *_first(y)] + y


def _first(y):
  """Index of the tokens of y after the batch axis; [] if y has no tokens."""
  return [slice(size) for size in y.shape[1:2]]
