from adavit_jax.train import config as base


def get_config():
  config = base.default_config()
  config.data.name = 'digits'
  config.data.holdout = 0.15
  config.data.crop_padding = 1
  config.model.name = 'vit_digits_patch2_8'
  config.dense.steps = 1000
  config.dense.learning_rate = 2e-3
  config.warm_start.steps = 200
  config.policy.steps = 200
  config.joint.steps = 500
  config.joint.batch_size = 64
  return config
