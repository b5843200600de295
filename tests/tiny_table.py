"""A config of a tiny RAViT, for the tables of test_tables."""

from adavit_jax.train import config as config_lib


def get_config(variant):
  config = config_lib.default_config()
  config.phases = ('exits',)
  config.data.holdout = 0.
  config.mesh.data = 1  # compiles faster
  config.model.name = 'ravit_cifar_patch4_32'
  config.model.update(
      image_size=8, patch_size=2, width=8, num_heads=2, mlp_ratio=2.,
      layers=(1, 1), remat=False)
  config.exits.update(steps=6, batch_size=8)
  config.exits.optimizer = dict(cpu='adamw', full='muon')[variant]
  return config
