"""What augmentations take on a TPU by XLA's count, without a TPU:

  python benchmarks/aot_augment.py --config=configs/imagenet_policy.py

Compiles the augmentation of --batch cropped images for one chip, as the config
has it and without RandAugment, and prints the floating-point operations and the
bytes of memory accessed, per image, and the temporary memory. Needs the extra
`tpu`.
"""

import functools

from absl import app
from absl import flags
from ml_collections import config_flags

import topology  # before jax

import jax
import jax.numpy as jnp

from adavit_jax import data
from adavit_jax.data import folder

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'File with the configuration.', lock_config=True)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2', 'KIND:SHAPE.')
_BATCH = flags.DEFINE_integer('batch', 72, 'Images of a chip.')


def main(argv):
  del argv
  chip = jax.sharding.SingleDeviceSharding(
      topology.devices(_TOPOLOGY.value)[0])
  config_data = _CONFIG.value.data.copy_and_resolve_references()
  for magnitude in (config_data.rand_augment.magnitude, 0.):
    config_data.rand_augment.magnitude = magnitude
    compiled = compile_augment(config_data, chip)
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    print(f"RandAugment {magnitude:g}: "
          f"{cost['flops'] / _BATCH.value / 1e6:.0f} MFLOP and "
          f"{cost['bytes accessed'] / _BATCH.value / 1e6:.0f} MB an image, "
          f'{memory.temp_size_in_bytes / 2**20:.0f} MiB')


def compile_augment(config_data, chip):
  """Compiles `data.augment` of images that were cropped on reading."""
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=chip)
  size = config_data.image_size

  def augment(key, images, labels):
    return data.augment(
        jax.random.wrap_key_data(key), images, labels, config_data=config_data,
        num_classes=1000, mean=folder.IMAGENET_MEAN, std=folder.IMAGENET_STD,
        image_size=size, cropped=True)

  return jax.jit(augment).lower(
      shape((2,), jnp.uint32),
      shape((_BATCH.value, size, size, 3), jnp.uint8),
      shape((_BATCH.value,), jnp.int32)).compile()


if __name__ == '__main__':
  app.run(main)
