"""Layer dropping on ImageNet: DeiT-S; `:base` and `:large` are ViT-B and ViT-L.

`:taught` is DeiT-S with a teacher that is another model, `:tiny` a test.

On every host of a TPU v5e 4x4 slice (16 chips of 16 GiB):

  python train.py --config=configs/imagenet_policy.py --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. A pod should read a packed set with worker processes
(docs/input.md):

  --config.data.name=packed --config.data.workers=16

The dense phase is DeiT's recipe: 300 epochs of rows, batches of 1024, AdamW,
weight decay, warm-up, drop path, random resized crops, RandAugment (m9,
mstd0.5, inc1), random erasing, mixup or CutMix for a batch, label smoothing,
averaging, and three repeats of every image. Two things differ: weights of
mixing are drawn for each image and not for a batch, and random masks of layers
are trained along (--config.dense.mask_weight=0 for the model alone). The color
jitter among DeiT's arguments has no effect in its code, since RandAugment takes
its place.

This config has not been run on a TPU: time and accuracy are unknown, and the
steps and learning rates after the dense phase are first guesses. What its steps
take on that slice, and on others, is in docs/pods.md.

With a teacher, the distillation token learns from its classes, as in DeiT, or
from its softmax with --config.dense.hard_distill=False; without one, both
tokens learn from the labels. `:taught` learns from a ViT-B/16 in the dense and
in the joint phase; FILE has timm's weights of vit_base_patch16_224:

  python train.py --config=configs/imagenet_policy.py:taught --distributed \\
      --config.teacher.weights=FILE --config.data.data_dir=DIR \\
      --workdir=gs://BUCKET/RUN

Any run of this library can be the teacher instead, or a file of weights for
another of its models that takes 224 pixels:

  --config.teacher.workdir=RUN --config.teacher.model=''
  --config.teacher.weights=FILE --config.teacher.model=NAME

`:tiny` runs 10 steps of every phase at 64 x 64 pixels; 300 images are enough:

  python train.py --config=configs/imagenet_policy.py:tiny \\
      --config.data.data_dir=DIR --workdir=runs/imagenet_tiny
"""

from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_STEPS_PER_EPOCH = 1_268_355 // 1024


def get_config(variant='small'):
  """Returns the schedule for DeiT-S; 'base' is ViT-B/16, 'large' is ViT-L/16.

  'taught' is DeiT-S with a teacher, whose file is to be given, 'tiny' a short
  test.
  """
  models = {
      'small': 'deit_small_distilled_patch16_224',
      'taught': 'deit_small_distilled_patch16_224',
      'base': 'vit_base_patch16_224',
      'large': 'vit_large_patch16_224',
      'tiny': 'vit_tiny_patch16_224',
  }
  if variant not in models:
    raise ValueError(f'variant {variant!r} of imagenet_policy is unknown; give '
                     f'one of {sorted(models)}')
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.mac_target = 0.65
  config.model.name = models[variant]
  config.model.num_fixed = 2
  # With 'all', the first layer of each policy network has about 200 x D inputs.
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256

  config.data.name = 'folder'  # or 'tfds:imagenet2012'
  config.data.on_corrupt = 'skip'
  config.data.image_size = 224
  config.data.load_size = 256
  config.data.holdout = 0.01
  config.data.flip = True
  config.data.resized_crop = 0.08
  config.data.rand_augment.magnitude = 9.0
  config.data.erasing = 0.25
  config.data.repeats = 3
  config.data.mixup = 0.8
  config.data.cutmix = 1.0
  config.data.label_smoothing = 0.1

  config.log_every = 100
  config.eval_every = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every = _STEPS_PER_EPOCH
  config.num_search = 1024
  config.eval_batch_size = 1024

  epochs = dict(dense=300, warm_start=5, policy=5, joint=30)
  for phase, num in epochs.items():
    config[phase].batch_size = 1024
    config[phase].steps = num * _STEPS_PER_EPOCH
  config.dense.learning_rate = 1e-3
  config.dense.end_lr_factor = 1e-5 / config.dense.learning_rate
  config.dense.weight_decay = 0.05
  config.dense.clip_norm = 0.
  config.dense.warmup = 5 / 300
  config.dense.drop_path = 0.1
  config.dense.ema = 0.99996
  config.joint.learning_rate = 1e-4
  config.joint.policy_lr_factor = 10.0  # the policy's learning rate is 1e-3
  config.joint.ema = 0.9999
  if variant == 'large':
    config.mesh.fsdp = 4  # the chips of a host hold one state between them
  if variant == 'taught':
    config.teacher.update(
        model='vit_base_patch16_224', phases=('dense', 'joint'))
    config.joint.hard_distill = True  # as the dense phase
  return _shrink(config) if variant == 'tiny' else config


def _shrink(config):
  """Reduces the schedule to a few steps of every phase at 64 x 64 pixels."""
  config.dtype = 'float32'
  config.model.image_size = 64
  config.data.image_size = 64
  config.data.load_size = 72
  config.data.holdout = 0.2
  config.log_every = 5
  config.eval_every = config.checkpoint_every = 1000
  config.num_search = 32
  config.eval_batch_size = 32
  for phase in config.phases:
    config[phase].batch_size = 24
    config[phase].steps = 10
  return config
