"""Early exits on a pretrained DeiT or ViT, for a folder of your images.

  python train.py --config=configs/folder_exits.py --workdir=DIR \\
      --config.init.weights=deit_small_patch16_224.safetensors \\
      --config.data.data_dir=IMAGES
  python eval.py --workdir=DIR

IMAGES and the weights file are as for folder_policy.py. The dense phase tunes
the model for the classes of the folder, and its last head after every encoder
(`nested`), which makes the class token useful early. Then exits are trained on
the frozen model. With --config.model.merge=8 they are trained on merged tokens.

Steps and learning rates are guesses for a DeiT-S on a GPU. Measured was a
ViT-Ti with 3600 photographs of ten classes (docs/results/pretrained.md): the
cascade has 94.0 % of test images at 0.53 of the MACs, all layers 95.8 %. The
exits took 6 minutes of one core of an AMD EPYC, the dense phase 40.

`:tiny` runs 10 steps of both phases with a DeiT-Ti at 64 x 64 pixels.
"""

from adavit_jax.train import config as base


def get_config(variant='small'):
  """Returns the schedule for DeiT-S; 'tiny' is a short test with DeiT-Ti."""
  if variant not in ('small', 'tiny'):
    raise ValueError(f"variant {variant!r} of folder_exits is unknown; give "
                     f"'small' or 'tiny'")
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.phases = ('dense', 'classifier_wise')
  config.mac_target = 0.65
  config.model.name = 'deit_small_patch16_224'
  config.model.exits = ((3, 'mlp'), (5, 'mlp'), (7, 'mlp'), (9, 'mlp'))

  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, holdout=0.1, flip=True,
      resized_crop=0.25, label_smoothing=0.1)

  config.eval_batch_size = 64
  config.dense.update(steps=2000, batch_size=64, learning_rate=5e-5,
                      mask_weight=0.0)
  config.classifier_wise.update(
      steps=1000, batch_size=64, learning_rate=2e-3)
  return _shrink(config) if variant == 'tiny' else config


def _shrink(config):
  config.dtype = 'float32'
  config.model.name = 'deit_tiny_patch16_224'
  config.model.image_size = 64
  config.data.image_size = 64
  config.data.holdout = 0.2
  config.log_every = 5
  config.eval_batch_size = 32
  for phase in config.phases:
    config[phase].update(batch_size=16, steps=10)
  return config
