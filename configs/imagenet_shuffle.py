"""Layer dropping with a Shuffle Transformer on ImageNet: `:tiny`, `:small`, ...

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_shuffle.py:tiny --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. `:base` is the third size. From a trained Shuffle Transformer,
leave out the first phase:

  --config.phases="('warm_start','policy','joint')" --config.init.weights=FILE

The dense phase has the authors' float32, epochs, batch size, learning rate,
warm-up, weight decay, clipping, RandAugment, random erasing, mixing and label
smoothing. Drop path has the authors' rate and leaves out the first stage as
theirs does, but it rises with every layer behind it; theirs is constant in a
stage. This phase also trains for dropped layers, which theirs does not; set
--config.dense.mask_weight=0 for the model alone. It has not been run: time and
accuracy are unknown, and steps and learning rates of the other phases are first
guesses.
"""

from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_BATCH = 1024
_STEPS_PER_EPOCH = 1_268_355 // _BATCH
_DROP_PATH = dict(tiny=0.1, small=0.3, base=0.5)


def get_config(variant='tiny'):
  """Returns the schedule for one of the three models."""
  if variant not in _DROP_PATH:
    raise ValueError(f'variant {variant!r} of imagenet_shuffle is unknown; '
                     f'give one of {tuple(_DROP_PATH)}')
  config = base.default_config()
  config.mac_target = 0.65
  # The policy decides behind the first stage.
  config.model.name = f'shuffle_{variant}_224'
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256
  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, load_size=256,
      holdout=0.01, flip=True, resized_crop=0.08, erasing=0.25, mixup=0.8,
      cutmix=1.0, label_smoothing=0.1)
  config.data.rand_augment.magnitude = 9.0
  config.log_every = 100
  config.eval_every = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every = _STEPS_PER_EPOCH
  config.num_search = 1024
  config.eval_batch_size = 1024
  epochs = dict(dense=300, warm_start=5, policy=5, joint=30)
  for phase, num in epochs.items():
    config[phase].update(steps=num * _STEPS_PER_EPOCH, batch_size=_BATCH)
  config.dense.update(
      learning_rate=5e-4 * _BATCH / 512, end_lr_factor=1e-5 / 1e-3,
      warmup=20 / 300, weight_decay=0.05, clip_norm=5.,
      drop_path=_DROP_PATH[variant])
  config.joint.update(learning_rate=1e-4, policy_lr_factor=10.0, ema=0.9999)
  return config
