"""Early exits and merged tokens on a pretrained ViT, for a folder of images.

  python train.py --config=configs/folder_exits.py --workdir=DIR \\
      --config.init.weights=FILE --config.data.data_dir=IMAGES
  python eval.py --workdir=DIR

FILE and IMAGES are as for folder_policy.py. The dense phase tunes the model for
the classes of the folder. Then the heads of the exits are trained on the frozen
model, and at last everything together: every exit learns from the labels and
from the last exit. Tokens merge, most of them in the first encoders. With
--config.model.merge=0, the dense phase also trains the last head after every
encoder (`nested`), which makes the class token useful early.
--config.model.name=NAME takes another model.

Measured was a ViT-Ti with 3,000 photographs of ten classes, its dense phase as
in folder_policy.py, without merging (docs/results/pretrained.md): 95.5 % of the
test images at 0.53 of the dense model's time for one image and 0.43 for 32, on
two cores of an AMD EPYC; all layers and tokens 95.8 %. The dense phase took 57
minutes of one busy core, the others 14.

Better were images of 160 pixels, 500 plain steps of dense, and heads alone on
the model as it is: 96.1 % at 0.50 and 0.37 of the time of 224 pixels, three
seeds, against 96.7 % of a dense model of as many steps. These are px160 and
small_heads0 of benchmarks/pretrained.sh, 19 and 6 minutes of one core:

  bash benchmarks/pretrained.sh FILE IMAGES runs px160 small_heads0

With the policy of a run of folder_policy.py: --config.exits.policy=True
--config.init.workdir=DIR --config.phases="('classifier_wise',)", with its
--config.data.holdout and --config.model.merge.

A quarter of the images is held out, since thresholds of exits need many. On a
GPU, --config.dtype=bfloat16 is faster.

`:tiny` runs 10 steps of all phases with a DeiT-Ti at 64 x 64 pixels.
"""

from adavit_jax.train import config as base


def get_config(variant=''):
  """Returns the schedule of a ViT-Ti; 'tiny' is a short test with DeiT-Ti."""
  if variant not in ('', 'tiny'):
    raise ValueError(f"variant {variant!r} of folder_exits is unknown; give "
                     f"'tiny', or leave it out")
  config = base.default_config()
  config.phases = ('dense', 'classifier_wise', 'exits')
  config.mac_target = 0.65
  config.model.name = 'vit_tiny_patch16_224'
  config.model.update(num_fixed=2, remat=False)
  config.nets.update(tokens='pooled', hidden=256)  # those of folder_policy.py
  config.num_search = 200
  config.model.exits = ((3, 'mlp'), (5, 'mlp'), (7, 'mlp'), (9, 'mlp'))
  config.model.merge = 13
  config.model.merge_schedule = 'falling'

  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, holdout=0.25, flip=True,
      resized_crop=0.25, label_smoothing=0.1)

  config.log_every = 10
  config.eval_batch_size = 64
  config.dense.update(steps=350, batch_size=32, learning_rate=2e-4,
                      mask_weight=0.0)
  config.classifier_wise.update(steps=80, batch_size=32, learning_rate=2e-3)
  config.exits.update(
      steps=250, batch_size=32, learning_rate=2e-4, distill=0.5)
  return _shrink(config) if variant == 'tiny' else config


def _shrink(config):
  config.model.name = 'deit_tiny_patch16_224'
  config.model.image_size = 64
  config.model.merge = 1
  config.data.image_size = 64
  config.data.holdout = 0.2
  config.num_search = 32
  config.log_every = 5
  config.eval_batch_size = 32
  for phase in config.phases:
    config[phase].batch_size = 16
    config[phase].steps = 10
  return config
