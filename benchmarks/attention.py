"""Attention as this library writes it, beside JAX's own and cuDNN's:

  python benchmarks/attention.py --output=attention.json

All take queries, keys and values as one projection gives them, [B, N, 3 H d],
and return [B, N, H d], so that what an order of axes costs is counted. Ratios
are within the same rounds. cuDNN's runs on NVIDIA GPUs in bfloat16 or float16;
elsewhere a line says that it is left out. Memory is what a program needs beside
its arguments and results. --gradient times the backward pass too.
"""

import json

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import encoder
import timing

_BATCHES = flags.DEFINE_list('batches', ['1', '64', '256'], 'Batch sizes.')
_TOKENS = flags.DEFINE_list('tokens', ['197', '577'], 'Tokens: of 224 and 384 '
                            'pixels in patches of 16, with a class token.')
_HEADS = flags.DEFINE_list('heads', ['6', '12'], 'Heads: of ViT-S and ViT-B.')
_HEAD_DIM = flags.DEFINE_integer('head_dim', 64, 'Width of a head.',
                                 lower_bound=1)
_DTYPE = flags.DEFINE_string('dtype', 'bfloat16', 'Compute dtype.')
_GRADIENT = flags.DEFINE_bool('gradient', False, 'Time the backward pass too.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed rounds.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_TOLERANCE = 0.1  # standard deviations of the result, in bfloat16


def here(qkv, heads):
  """As `models.encoder` computes it: [B, N, 3 H d] -> [B, N, H d]."""
  q, k, v = (encoder.split_heads(x, heads) for x in jnp.split(qkv, 3, axis=-1))
  y = encoder.attention(q, k, v)  # [B, H, N, d]
  return y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1)


def jax_nn(qkv, heads, implementation):
  """`jax.nn.dot_product_attention`, [B, N, 3 H d] -> [B, N, H d]."""
  b, n, _ = qkv.shape
  q, k, v = (x.reshape(b, n, heads, -1) for x in jnp.split(qkv, 3, axis=-1))
  return jax.nn.dot_product_attention(
      q, k, v, implementation=implementation).reshape(b, n, -1)


def forms(heads):
  """Returns {name: function of qkv [B, N, 3 H d]}."""
  return {
      'here': lambda qkv: here(qkv, heads),
      'jax.nn, xla': lambda qkv: jax_nn(qkv, heads, 'xla'),
      'jax.nn, cudnn': lambda qkv: jax_nn(qkv, heads, 'cudnn')}


def rows(batch, tokens, heads, head_dim, dtype, *, repeats, gradient=False):
  """Times all forms that run here on one shape.

  Args:
    batch: B.
    tokens: N.
    heads: H.
    head_dim: d.
    dtype: a string.
    repeats: rounds.
    gradient: time the gradient of the sum of squares instead.

  Yields:
    dicts; `ratio` is the time over that of this library's.

  Raises:
    RuntimeError: if results differ.
  """
  rng = np.random.default_rng(0)
  qkv = jnp.asarray(rng.normal(size=(batch, tokens, 3 * heads * head_dim)),
                    dtype)
  programs, stats, first = {}, {}, None
  for name, function in forms(heads).items():
    run = function if not gradient else jax.grad(
        lambda x, f=function: (f(x).astype(jnp.float32)**2).sum())
    try:
      program, stats[name] = timing.compile_jit(jax.jit(run), qkv)
      result = np.asarray(program(qkv), np.float32)
    except Exception as error:  # of any type, where there is no cuDNN
      if 'cudnn' not in name:
        raise
      lines = str(error).strip().splitlines() or ['']
      print(f'({name} is left out: {type(error).__name__}: {lines[0][:120]})',
            flush=True)
      continue
    first = result if first is None else first
    worst = np.abs(result - first).max() / first.std()
    if not worst < _TOLERANCE:
      raise RuntimeError(f'{name} differs by {worst} standard deviations')
    programs[name] = lambda i, run=program: run(qkv)
  times = timing.alternate(programs, repeats)
  reference = np.median(times['here'])
  for name, seconds in times.items():
    yield dict(
        form=name, batch=batch, tokens=tokens, heads=heads, head_dim=head_dim,
        dtype=dtype, gradient=gradient, ms=1e3 * float(np.median(seconds)),
        ratio=float(np.median(seconds) / reference),
        quartiles_ms=np.percentile(1e3 * seconds, (25, 75)).tolist(),
        device=jax.devices()[0].device_kind, jax=jax.__version__,
        **stats[name])


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {_DTYPE.value}'
        f', medians of {_REPEATS.value} rounds in alternation\n')
  print('| form | batch | tokens | heads | ms | time over here | temporary MB |'
        '\n|' + '---|' * 7)
  found = []
  for heads in map(int, _HEADS.value):
    for tokens in map(int, _TOKENS.value):
      for batch in map(int, _BATCHES.value):
        for row in rows(batch, tokens, heads, _HEAD_DIM.value, _DTYPE.value,
                        repeats=_REPEATS.value, gradient=_GRADIENT.value):
          memory = row['temp_mb']
          print('| {form} | {batch} | {tokens} | {heads} | {ms:.3f} | '
                '{ratio:.2f} | {0} |'.format(
                    '' if memory is None else f'{memory:.1f}', **row),
                flush=True)
          found.append(row)
        if _OUTPUT.value:
          with open(_OUTPUT.value, 'w', encoding='utf-8') as f:
            json.dump(found, f, indent=1)


if __name__ == '__main__':
  app.run(main)
