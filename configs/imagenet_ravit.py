"""RAViT on ImageNet: branches of 64, 128 and 224 pixels, an exit after each.

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_ravit.py --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. The model is the paper's 1-1-8; 1-1-10 is the same config with
--config.model.layers="(1,1,10)", and its dense baselines with 8, 10 and 12
encoders (ViT-B) are "(0,0,8)", "(0,0,10)" and "(0,0,12)".
`python benchmarks/tables.py ravit_imagenet --schedule=full` trains and compares
all of them on one host.

The 500 epochs, AdamW, cosine decay, crops and flips are the paper's. Its text
as we have it lacks learning rate, decay rates, weight decay, weights of the
exits and batch size; it names no warm-up and no clipping. Those here are ours,
and so are bfloat16 and 1 % of the images held out for thresholds. It has not
been run; time and accuracy are unknown (paper: 73.25 %).
"""

from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_STEPS_PER_EPOCH = 1_268_355 // 1024


def get_config(variant=''):
  """Returns the paper's schedule."""
  if variant:
    raise ValueError(f'unknown variant {variant!r}; this config has none')
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.phases = ('exits',)
  config.mac_target = 0.93  # of 1-1-8 without exits, as in Table III
  config.model.name = 'ravit_imagenet_patch16_224'
  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, load_size=256,
      holdout=0.01, resized_crop=0.08, flip=True)
  config.exits.update(
      steps=500 * _STEPS_PER_EPOCH, batch_size=1024, warmup=5 / 500)
  config.log_every = 100
  config.eval_every = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every = _STEPS_PER_EPOCH
  config.eval_batch_size = 1024
  return config
