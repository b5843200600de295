"""Layer dropping with Evo-ViT on DeiT, on ImageNet: `:small_224`, ...

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_evo.py:small_224 --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

A variant is the name of a model without 'evo_deit_'. DIR contains
train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds prepared as
array_record add --config.data.name=tfds:imagenet2012; DIR is then its data_dir.
From a trained model, leave out the first phase:

  --config.phases="('warm_start','policy','joint')" --config.init.weights=FILE

The dense phase is DeiT's recipe from scratch, as in the authors' code: 300
epochs, in the first 200 of which tokens are selected before every encoder from
the fifth on; then two selections remain, as in all other phases
(model.layerwise). DeiT-Ti has no drop path. Every image is repeated three
times. Drop path rises over the layers behind the policy; in the authors' code,
over all. This phase also trains for dropped layers, which theirs does not; set
--config.dense.mask_weight=0 for the model alone. It has not been run: time and
accuracy are unknown, and steps and learning rates of the other phases are first
guesses.
"""

from adavit_jax.models import evo_deit
from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_BATCH = 1024
_STEPS_PER_EPOCH = 1_268_355 // _BATCH
_MODELS = sorted(name.removeprefix('evo_deit_') for name, model in
                 evo_deit.MODELS.items() if model['num_classes'] == 1000)


def get_config(variant='small_224'):
  """Returns the schedule for a model."""
  if variant not in _MODELS:
    raise ValueError(f'variant {variant!r} of imagenet_evo is unknown; give '
                     f'one of {_MODELS}')
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.mac_target = 0.65
  config.model.name = f'evo_deit_{variant}'
  config.model.num_fixed = 4  # those that see all tokens
  config.model.layerwise = 200 / 300
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256
  size = evo_deit.MODELS[config.model.name]['image_size']
  config.data.update(
      name='folder', on_corrupt='skip', image_size=size,
      load_size=size * 8 // 7, holdout=0.01, flip=True, resized_crop=0.08,
      erasing=0.25, repeats=3, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
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
      learning_rate=1e-3, end_lr_factor=1e-5 / 1e-3, warmup=5 / 300,
      weight_decay=0.05, drop_path=0. if 'tiny' in variant else 0.1, ema=0.9999,
      clip_norm=0.)
  config.joint.update(learning_rate=1e-4, policy_lr_factor=10.0, ema=0.9999)
  return config
