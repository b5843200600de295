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


def pass_sizes(chunk, most=None):
  """Returns the sizes of the last pass, ascending; the largest fits C - 1 rows.

  Args:
    chunk: C, rows of a full pass.
    most: maximum number of evenly spaced sizes; None for `_SIZES`. A quarter of
      a step is added as the smallest size if it is 2 or more, because under a
      trained policy few images keep many of the layers.
  """
  step = -(-chunk // (most or _SIZES))
  even = [min(size, chunk) for size in range(step, chunk - 1 + step, step)]
  small = step // 4
  return [small, *even] if small >= 2 else even


def residual(run, x, keep, chunk, most=None):
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
  chunk = min(chunk, len(keep))
  num = keep.astype(bool).sum(dtype=jnp.int32)
  order = _kept_first(keep, num, chunk)
  rows_of = lambda start, length: jax.lax.dynamic_slice(
      order, (start,), (length,))

  def full_pass(i, x):
    if chunk == len(keep):  # a pass of all rows needs no gather
      return branches.add(x, run(x))
    rows = rows_of(i * chunk, chunk)
    return _put(x, rows, _updated(run, x, rows))

  num_full, sizes = num // chunk, pass_sizes(chunk, most)
  x = jax.lax.fori_loop(0, num_full, full_pass, x)
  if not sizes:
    return x

  done = num_full * chunk
  def last_pass(_, x):
    of_size = lambda size: lambda x: _padded(
        _updated(run, x, rows_of(done, size)), sizes[-1])
    smallest = (num - done > jnp.asarray(sizes)).sum()
    y = jax.lax.switch(smallest, [of_size(size) for size in sizes], x)
    return _put(x, rows_of(done, sizes[-1]), y)

  # A loop of at most one iteration works in place; `lax.cond` would copy x
  # (observed on CPU).
  return jax.lax.fori_loop(0, (num > done).astype(jnp.int32), last_pass, x)


# The rows of a pass are sorted and distinct.
_ROWS = dict(indices_are_sorted=True, unique_indices=True)


def _kept_first(keep, num, extra):
  """Row indices [B + extra]: the `num` kept rows, in order, then padding.

  Padding is out of range: reads of it are clipped and writes are dropped.
  """
  size = len(keep)
  places = jnp.arange(size + extra)
  order = jnp.argsort(~keep.astype(bool), stable=True)
  order = jnp.concatenate([order, jnp.zeros(extra, order.dtype)])
  return jnp.where(places < num, order, size + places)


def _updated(run, x, rows):
  """The tokens that `run` updates in the given rows, x + run(x): [C, n, ...].
  """
  taken = jax.tree.map(lambda a: a.at[rows].get(mode='clip', **_ROWS), x)
  return _sum(taken, run(taken))


def _put(x, rows, y):
  """Writes updated tokens y into the given rows of x."""
  if isinstance(x, dict):
    return {**x, **{key: _put(x[key], rows, part) for key, part in y.items()}}
  return x.at[rows, *_first(y)].set(y, mode='drop', **_ROWS)


def _padded(y, size):
  """Pads the leading axis of each array to `size`, with zeros."""
  return jax.tree.map(lambda a: jnp.pad(
      a, ((0, size - len(a)), *((0, 0),) * (a.ndim - 1))), y)


def _sum(x, y):
  """Adds y to the tokens of x that it covers, and returns these alone."""
  if isinstance(x, dict):
    return {key: _sum(x[key], part) for key, part in y.items()}
  return x[:, *_first(y)] + y


def _first(y):
  """Index of the tokens of y after the batch axis; [] if y has no tokens."""
  return [slice(size) for size in y.shape[1:2]]
