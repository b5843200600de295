"""Timing that is robust on a noisy machine: alternation, medians, ratios."""

import os
import time

import jax
import numpy as np

# Seconds of untimed calls at the start of a turn: idle threads of the previous
# function spin for a while, and a second core wakes up late.
_WARM_UP = 0.2

# Minimum seconds of the timed calls of one turn.
_TURN = 0.15

COLUMNS = ('model', 'mode', 'batch', 'keep', 'time_ms', 'images_per_s',
           'time_ratio', 'mac_ratio', 'efficiency', 'compile_s', 'temp_mb')


def compile_jit(function, *args):
  """Compiles a jitted function for the shapes of its arguments.

  Returns:
    (compiled, {'compile_s', 'temp_mb'}); the memory excludes the program's
    arguments and results.
  """
  start = time.perf_counter()
  compiled = function.lower(*args).compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  return compiled, dict(
      compile_s=seconds,
      temp_mb=memory.temp_size_in_bytes / 2**20 if memory else None)


def alternate(functions, repeats, clock=None):
  """Times functions in turn, so that all run under the same conditions.

  A turn has untimed calls and then timed calls. The order of the turns rotates,
  and is reversed in every other round.

  Args:
    functions: {name: function of the index of the round}; timing waits for its
      result. It is called several times with the same index and must do the
      same work each time, of 0.1 ms or more.
    repeats: number of rounds, after an untimed one.
    clock: function that returns seconds; None for `time.perf_counter`.

  Returns:
    {name: seconds per call in each round, [repeats]}.
  """
  times = {name: [] for name in functions}
  names = list(functions)
  for i in range(repeats + 1):
    first = i % len(names)
    order = names[first:] + names[:first]
    for name in order[::-1] if i % 2 else order:
      run = lambda: jax.block_until_ready(functions[name](i))
      _seconds_per_call(run, _WARM_UP, clock or time.perf_counter)
      seconds = _seconds_per_call(run, _TURN, clock or time.perf_counter)
      if i:
        times[name].append(seconds)
  return {name: np.array(t) for name, t in times.items()}


def _seconds_per_call(run, at_least, clock):
  """Returns the mean time of calls that last `at_least` seconds together."""
  start, calls, passed = clock(), 0, 0.
  while not calls or passed < at_least:
    run()
    calls += 1
    passed = clock() - start
  return passed / calls


def num_cores():
  """Returns the number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity') else os.cpu_count()


def row(model, mode, batch, keep, seconds, dense_seconds, mac_ratio, *,
        dtype, compile_s=None, temp_mb=None):
  """Makes one row of the table.

  Args:
    model: name of the model.
    mode: execution mode, or another library.
    batch: B.
    keep: fraction of the adaptive layers that run.
    seconds: seconds per call in each round.
    dense_seconds: the same for the dense model in the same rounds.
    mac_ratio: MACs of each round over the dense model's, or their mean.
    dtype: compute dtype, a string.
    compile_s: see `compile_jit`.
    temp_mb: see `compile_jit`.

  Returns:
    dict; `efficiency` = dense time x MAC ratio / measured time, in medians;
    `quartiles_ms` shows the spread over the rounds.
  """
  time_s, dense_s = np.median(seconds), np.median(dense_seconds)
  mac_ratio = float(np.mean(mac_ratio))
  device = jax.devices()[0]
  return dict(
      model=model, mode=mode, batch=batch, keep=round(float(keep), 3),
      time_ms=float(time_s * 1e3), images_per_s=float(batch / time_s),
      time_ratio=float(time_s / dense_s), mac_ratio=mac_ratio,
      efficiency=float(dense_s * mac_ratio / time_s),
      quartiles_ms=np.percentile(seconds * 1e3, (25, 75)).tolist(),
      compile_s=compile_s, temp_mb=temp_mb, dtype=dtype,
      device=f'{device.platform} {device.device_kind}, {num_cores()} cores',
      jax=jax.__version__)


def format_row(row):
  """Formats a line of the table; `header` names its columns."""
  cells = []
  for name in COLUMNS:
    value = row.get(name)
    if value is None:
      value = '-'
    elif isinstance(value, float):
      digits = {'time_ms': 2, 'images_per_s': 1, 'compile_s': 1,
                'temp_mb': 1, 'keep': 2}.get(name, 3)
      value = f'{value:,.{digits}f}'
    cells.append(f'{value:<22}' if name in ('model', 'mode')
                 else f'{value:>12}')
  return ' '.join(cells)


def header():
  names = [f'{c:<22}' if c in ('model', 'mode') else f'{c:>12}'
           for c in COLUMNS]
  return ' '.join(names)
