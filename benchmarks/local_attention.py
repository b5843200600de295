"""Times the local attention of Vision Longformer beside full attention:

  python benchmarks/local_attention.py --output=local_attention.json

One attention without projections, over square grids of tokens and a global
token: full; local, whose queries see nine chunks; and shifted, whose queries
see two (random shift). Memory is what the compiled program needs beside its
arguments and results. --gradient times the forward and the backward pass.
--cpu_time counts the time in which the process computes, over all cores, and
not that in which it waits: for a machine that others use too, and one core.
"""

import json
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import encoder
from adavit_jax.models import sliding_chunks
import timing

_SIDES = flags.DEFINE_list('sides', ['14', '21', '28', '35', '42', '56'],
                           'Sides of the grids of tokens.')
_WINDOW = flags.DEFINE_integer('window', 7, 'Side of a chunk.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 1, 'Batch size.', lower_bound=1)
_HEADS = flags.DEFINE_integer('heads', 3, 'Attention heads.', lower_bound=1)
_HEAD_DIM = flags.DEFINE_integer('head_dim', 32, 'Width of a head.',
                                 lower_bound=1)
_GRADIENT = flags.DEFINE_bool('gradient', False, 'Time the backward pass too.')
_CPU_TIME = flags.DEFINE_bool('cpu_time', False, 'Time of the process alone.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed rounds.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')

NUM_GLOBAL = 1


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  rows = [row for side in map(int, _SIDES.value) for row in compare(side)]
  if _OUTPUT.value:
    with open(_OUTPUT.value, 'w') as f:
      json.dump(rows, f, indent=2)


def compare(side):
  """Times all kinds of attention on one grid: a list of rows."""
  at = sliding_chunks.Layout(side, side, _WINDOW.value, NUM_GLOBAL)
  rng = np.random.default_rng(0)
  shape = 3, _BATCH.value, _HEADS.value, at.num_tokens, _HEAD_DIM.value
  qkv = jnp.float32(rng.normal(size=shape))
  width = _HEADS.value * _HEAD_DIM.value
  near, tokens = at.window**2 * np.prod(at.num_chunks), at.num_tokens
  macs = dict(
      full=2 * width * tokens**2, local=sliding_chunks.sliding_macs(at, width),
      shifted=2 * width * (near * (2 * at.window**2 + 1) + tokens))
  local = lambda q, k, v, drawn=None: sliding_chunks.sliding_attention(
      q, k, v, at, drawn=drawn)
  functions = dict(
      full=encoder.attention, local=local,
      shifted=lambda q, k, v, drawn: local(q, k, v, drawn))
  programs, info = {}, {}
  for name, function in functions.items():
    extra = (jnp.int32(3),) if name == 'shifted' else ()
    program, info[name] = timing.compile_jit(
        jax.jit(_with_gradient(function)), qkv, *extra)
    programs[name] = lambda i, run=program, extra=extra: run(qkv, *extra)
  times = timing.alternate(
      programs, _REPEATS.value,
      time.process_time if _CPU_TIME.value else None)
  rows = []
  for name, seconds in times.items():
    rows.append(dict(
        side=side, attention=name, time_ms=float(np.median(seconds) * 1e3),
        quartiles_ms=np.percentile(seconds * 1e3, (25, 75)).tolist(),
        time_ratio=float(np.median(seconds) / np.median(times['full'])),
        macs=int(macs[name]), temp_mb=info[name]['temp_mb'],
        cores=timing.num_cores(), jax=jax.__version__,
        gradient=_GRADIENT.value, cpu_time=_CPU_TIME.value))
    print('{side:>3} x {side:<3} {attention:<8} {time_ms:9.2f} ms, '
          '{time_ratio:5.2f} of full, {temp_mb:8.1f} MB'.format(**rows[-1]),
          flush=True)
  return rows


def _with_gradient(function):
  """A function of stacked queries, keys and values, or its gradient."""
  run = lambda qkv, *extra: function(*qkv, *extra)
  if not _GRADIENT.value:
    return run
  return jax.grad(lambda qkv, *extra: (run(qkv, *extra)**2).sum())


if __name__ == '__main__':
  app.run(main)
