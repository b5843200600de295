"""Layer dropping with CrossViT on ImageNet; `:9_dagger_240` names a model.

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_crossvit.py:small_240 \\
      --distributed --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. From a trained CrossViT, leave out the first phase:

  --config.phases="('warm_start','policy','joint')" --config.init.weights=FILE

The dense phase has the epochs, learning rate, weight decay, RandAugment, random
erasing, mixing, label smoothing and repeated augmentation of the paper. A batch
has 4608 rows, not 4096: 1536 images, three times each. Drop path has the
paper's rate, but it rises over the layers behind the policy, in the order in
which they run; in the paper it rises in both streams alike, and drops
cross-attentions too. This phase also trains for dropped layers, which the
paper's does not; set --config.dense.mask_weight=0 for the model alone. It has
not been run: time and accuracy are unknown, and steps and learning rates of the
other phases are first guesses.
"""

from adavit_jax.models import crossvit
from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_BATCH = 4608
_STEPS_PER_EPOCH = 1_268_355 // _BATCH
_MODELS = sorted(name.removeprefix('crossvit_') for name, model in
                 crossvit.MODELS.items() if model['num_classes'] == 1000)


def get_config(variant='small_240'):
  """Returns the schedule for one of the eleven models."""
  if variant not in _MODELS:
    raise ValueError(f'variant {variant!r} of imagenet_crossvit is unknown; '
                     f'give one of {_MODELS}')
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.mac_target = 0.65
  config.model.name = f'crossvit_{variant}'
  model = crossvit.MODELS[config.model.name]
  # The policy decides behind the first stage.
  config.model.num_fixed = 1 + model['depth']
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256
  size = model['image_size']
  config.data.update(
      name='folder', on_corrupt='skip', image_size=size,
      load_size=size if size > 384 else 274, holdout=0.01, flip=True,
      resized_crop=0.08, erasing=0.25, repeats=3, mixup=0.8, cutmix=1.0,
      label_smoothing=0.1)
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
      learning_rate=5e-4 * _BATCH / 512,
      end_lr_factor=1e-5 / (5e-4 * _BATCH / 512),
      warmup=30 / 300, weight_decay=0.05, drop_path=0.1, clip_norm=0.)
  config.joint.update(learning_rate=1e-4, policy_lr_factor=10.0, ema=0.9999)
  return config
