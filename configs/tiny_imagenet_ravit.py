"""RAViT on Tiny ImageNet: branches of 16 and 64 pixels, an exit after each.

  python train.py --config=configs/tiny_imagenet_ravit.py --workdir=runs/tiny \\
      --config.data.data_dir=DIR
  python eval.py --workdir=runs/tiny

DIR is the tiny-imagenet-200 of the archive, after

  python -m adavit_jax.data.tiny_imagenet DIR

has moved its validation images to val/CLASS. The model is the paper's 2-0-3;
the middle branch of 32 pixels is absent. Its dense baselines with 3, 4 and 6
encoders are the same config with --config.model.layers="(0,0,3)", "(0,0,4)" and
"(0,0,6)". `python benchmarks/tables.py ravit_tiny_imagenet --schedule=full`
trains and compares all of them.

The 50 epochs, AdamW, cosine decay, crops and flips are the paper's, for one
GPU. Its text as we have it lacks learning rate, decay rates, weight decay,
weights of the exits and batch size; it names no warm-up and no clipping. Those
here are ours, and so are bfloat16 and a tenth of the images held out for
thresholds. It has not been run; time and accuracy are unknown (paper: 40.7 %).
"""

from adavit_jax.train import config as base

# A tenth of the 100,000 training images is held out.
_STEPS_PER_EPOCH = 90_000 // 256


def get_config(variant=''):
  """Returns the paper's schedule."""
  if variant:
    raise ValueError(f'unknown variant {variant!r}; this config has none')
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.phases = ('exits',)
  config.mac_target = 0.81  # of 2-0-3 without exits; the last row of Table II
  config.model.name = 'ravit_tiny_imagenet_patch4_64'
  config.data.update(
      name='folder', image_size=64, resized_crop=0.08, flip=True, holdout=0.1)
  config.exits.update(steps=50 * _STEPS_PER_EPOCH, batch_size=256)
  config.eval_every = config.checkpoint_every = _STEPS_PER_EPOCH
  return config
