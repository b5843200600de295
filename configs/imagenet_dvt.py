"""DVT on ImageNet: T2T-ViT-12 on 7 x 7, 10 x 10 and 14 x 14 tokens.

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_dvt.py --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. `:t2t_14` is DVT with T2T-ViT-14, `:deit_small` with DeiT-S, whose
optimizer settings are DeiT's since the authors' code does not train it.

Epochs, batch size, learning rates, weight decay, warm-up, averaging of the
parameters and equal weights of the three losses are those of the authors' code,
and so are crops, flips, RandAugment, random erasing, mixup, CutMix and label
smoothing (RandAugment switches the color jitter of its arguments off). Drop
path, dropout in the stem and 10 epochs at the last learning rate are left out,
all images are resized with bicubic interpolation instead of a random one, and
linear layers of encoders begin with Xavier's distribution in place of its own.
It has not been run; time and accuracy are unknown (paper: about 80.0 % at 2.8 G
MACs for T2T-ViT-12, 82.8 % at 5.3 G for T2T-ViT-14).

What a step takes on 16 chips of v5e is in docs/pods.md.
"""

from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_NUM_TRAIN = 1_268_355
_VARIANTS = {
    't2t_12': dict(model='dvt_t2t_vit_12_224', batch_size=1024,
                   learning_rate=2e-3, weight_decay=0.03, warmup=20),
    't2t_14': dict(model='dvt_t2t_vit_14_224', batch_size=512,
                   learning_rate=5e-4, weight_decay=0.05, warmup=20),
    'deit_small': dict(model='dvt_deit_small_224', batch_size=1024,
                       learning_rate=1e-3, weight_decay=0.05, warmup=5),
}
_EPOCHS = 300


def get_config(variant='t2t_12'):
  """Returns the schedule of 't2t_12', 't2t_14' or 'deit_small'."""
  if variant not in _VARIANTS:
    raise ValueError(f'variant {variant!r} of imagenet_dvt is unknown; give '
                     f'one of {sorted(_VARIANTS)}')
  v = _VARIANTS[variant]
  steps_per_epoch = _NUM_TRAIN // v['batch_size']
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.phases = ('exits',)
  config.mac_target = 0.5  # of the last exit's
  config.model.name = v['model']
  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, load_size=256,
      holdout=0.01, resized_crop=0.08, flip=True, erasing=0.25, mixup=0.8,
      cutmix=1.0, label_smoothing=0.1)
  config.data.rand_augment.magnitude = 9.0
  config.exits.update(
      rule='max_probability', steps=_EPOCHS * steps_per_epoch,
      batch_size=v['batch_size'], learning_rate=v['learning_rate'],
      weight_decay=v['weight_decay'], warmup=v['warmup'] / _EPOCHS,
      end_lr_factor=1e-5 / v['learning_rate'], clip_norm=0., ema=0.99996)
  config.log_every = 100
  config.eval_every = 5 * steps_per_epoch
  config.checkpoint_every = steps_per_epoch
  config.eval_batch_size = 1024
  return config
