"""Runs a function on the rows of a batch that need it, and on no others."""

import jax
import jax.numpy as jnp

from adavit_jax.runtime import branches

# MACs that one pass should have to hide its gather, its scatter and the start
# of its matrix products, and few enough that its activations stay in the cache
# (benchmarks/execution.py --chunks). Only the CPU's figure has been measured.
_MACS_PER_PASS = {'cpu': 2.5e8, 'gpu': 1e10, 'tpu': 5e9}

# Sizes of the last, smaller pass. More of them compute fewer rows in vain and
# take longer to compile.
_SIZES = 8


def chunk_size(batch_size, macs_per_row, backend=None):
  """Rows per pass of `residual`: a power of two, or the whole batch.

  Args:
    batch_size: B.
    macs_per_row: what the function costs for one row.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default one.

  Returns:
    C, 1 <= C <= B.
  """
  wanted = _MACS_PER_PASS.get(backend or jax.default_backend(), 5e9)
  chunk = 1
  while chunk < batch_size and chunk * macs_per_row < wanted:
    chunk *= 2
  return min(chunk, batch_size)


def pass_sizes(chunk, most=_SIZES):
  """Sizes of the last pass, ascending: `chunk` - 1 rows fit.

  Args:
    chunk: C, rows of a full pass.
    most: sizes, in even steps, at most. One of a quarter of a step, if that is
      2 or more, comes before them: under a trained policy many layers are kept
      by few images.
  """
  step = -(-chunk // most)
  even = [min(size, chunk) for size in range(step, chunk - 1 + step, step)]
  small = step // 4
  return [small, *even] if small >= 2 else even


def residual(run, x, keep, chunk, most=_SIZES):
  """x + run(x) in the rows that keep it; the other rows are not computed.

  Kept rows go through `run` in a loop of passes of `chunk` rows, as many as
  there are, and the rest of them in one pass of the smallest size that holds
  them, chosen by a switch. The program has the code of `run` once per size,
  whatever the number of rows: `keep` changes trip counts and the branch taken,
  never shapes.

  Args:
    run: row by row, what is added to x: for an array [C, N, ...] one of
      [C, n, ...], added to the first n <= N tokens; for a dict some of its
      keys.
    x: [B, N, ...], or a dict of arrays [B, ...].
    keep: [B], 1 or True = run, 0 or False = leave the row as it is.
    chunk: rows per pass, from `chunk_size`.
    most: of `pass_sizes`.

  Returns:
    As x.
  """
  size = len(keep)
  chunk = min(chunk, size)
  wanted = keep.astype(bool)
  num = wanted.sum(dtype=jnp.int32)
  # Kept rows first, in their order. The places after them hold rows that are
  # not there: reads are clipped and writes dropped.
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

  # A loop of one turn or none works in place, where a branch that leaves x as
  # it is, or writes into it, would copy it (seen on CPU).
  return jax.lax.fori_loop(0, (num > done).astype(jnp.int32), last, x)


def _sum(x, y):
  """The tokens of x that y is added to, with y added."""
  if isinstance(x, dict):
    return {key: _sum(x[key], part) for key, part in y.items()}
  return x[:, *_first(y)] + y


def _first(y):
  """Indices of the tokens of y behind the batch axis, if it has tokens."""
  return [slice(size) for size in y.shape[1:2]]
