"""Compiles the execution modes for a TPU, without a TPU, and counts operations:

  pip install -e '.[tpu]'
  python benchmarks/aot_modes.py --model=vit_small_patch16_224 --batch=32

A dropped layer saves time only if the compiler keeps the conditionals and the
loops over passes of `compact`; and a program that contains each encoder once
per layer and size takes minutes to compile. The table therefore has two depths:
no number may grow with depth.
"""

import re
import time

from absl import app
from absl import flags

import topology  # before jax

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np

import adavit_jax
from adavit_jax import cost
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import compact
from adavit_jax.runtime import modes

_MODEL = flags.DEFINE_string('model', 'vit_small_patch16_224',
                             'Name of the model.')
_BATCH = flags.DEFINE_integer('batch', 32,
                              'Batch size of the modes masked and compact.')
_DEPTHS = flags.DEFINE_list('depths', ['12', '24'], 'Numbers of encoders.')
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2',
                                'Topology; one chip of it is used.')
_DTYPE = flags.DEFINE_string('dtype', 'bfloat16', 'Compute dtype.')

_COUNTED = {'conditional': r' conditional\(', 'while': r' while\(',
            'products': r' (?:dot|convolution)\('}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    device = topology.devices(_TOPOLOGY.value)[0]
  except ValueError as error:
    raise SystemExit(f'error: {error}') from error
  print(f'{_MODEL.value}, {_DTYPE.value}, one chip of {_TOPOLOGY.value}\n')
  print(f'{"mode":<10}{"batch":>6}{"depth":>6}{"passes of":>12}'
        f'{"compile s":>11}' + ''.join(f'{name:>13}' for name in _COUNTED))
  for mode, batch in (('masked', _BATCH.value), ('cond', 1),
                      ('compact', _BATCH.value)):
    for depth in map(int, _DEPTHS.value):
      model = adavit_jax.create(_MODEL.value, depth=depth, dtype=_DTYPE.value)
      macs = cost.of(model)
      chunk = compact.chunk_size(
          batch, np.mean([*macs.msa, *macs.mlp]), 'tpu')
      start = time.monotonic()
      text = compiled(model, mode, batch, chunk, device).as_text()
      seconds = time.monotonic() - start
      sizes = chunk if mode == 'compact' else '-'
      print(f'{mode:<10}{batch:>6}{depth:>6}{sizes:>12}{seconds:>11.1f}'
            + ''.join(f'{len(re.findall(pattern, text)):>13}'
                      for pattern in _COUNTED.values()), flush=True)


def compiled(model, mode, batch, chunk, device):
  """Compiles the model, from images to logits, for one TPU chip."""
  def on_chip(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=SingleDeviceSharding(device))

  def run(params, images, actions):
    z1 = modes.before_policy(model, params, images)
    return modes.after_policy(
        model, params, z1, actions, mode, chunk=chunk).total

  params = jax.eval_shape(
      lambda: adavit_jax.init_params(model, jax.random.key(0)))
  params = jax.tree.map(lambda x: on_chip(x.shape, x.dtype), params)
  side = model.image_size
  images = on_chip((batch, side, side, model.channels))
  actions = Actions(*(on_chip((batch, num))
                      for num in plan.num_layers(model)))
  return jax.jit(run).lower(params, images, actions).compile()


if __name__ == '__main__':
  app.run(main)
