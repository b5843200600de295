from adavit_jax.train import config as base


def get_config(variant=''):
  config = base.default_config()
  config.data.name = 'tfds:cifar10'
  config.data.image_size = 32
  config.data.crop_padding = 4
  config.data.flip = True
  config.data.holdout = 0.1
  config.model.name = 'vit_cifar_conv8_32'
  config.nets.tokens = 'pooled'
  config.dense.steps = 4000
  config.dense.batch_size = 128
  return config
