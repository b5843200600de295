from adavit_jax.train import config as base


def get_config(variant='mix'):
  config = base.default_config()
  config.data.name = 'digit_scenes'
  config.data.image_size = 16
  config.data.scenes.kind = variant
  config.data.crop_padding = 1
  config.model.name = 'vit_scenes_patch4_16'
  config.dense.steps = 2000
  config.dense.learning_rate = 2e-3
  config.warm_start.steps = 400
  config.policy.steps = 300
  config.joint.steps = 600
  return config
