"""Layer dropping with LeViT on ImageNet: `:128s`, `:256`, ... `:evo_256`, ...

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_levit.py:256 --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

DIR contains train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds
prepared as array_record add --config.data.name=tfds:imagenet2012; DIR is then
its data_dir. From a trained LeViT, leave out the first phase:

  --config.phases="('warm_start','policy','joint')" --config.init.weights=FILE

The dense phase has the paper's float32, epochs, learning rate, weight decay,
averaging, RandAugment, random erasing, mixing, label smoothing and repeated
augmentation. A batch has 2304 rows, not 2048: 768 images, three times each.
With a teacher, the second head learns from its classes, as in the paper (hard
distillation from a RegNetY-16GF). Any run of this library can be the teacher,
or a file of weights for one of its models; without one, both heads
learn from the labels:

  --config.teacher.workdir=RUN
  --config.teacher.weights=FILE --config.teacher.model=NAME

A variant with `evo_` is Evo-LeViT by the same recipe, as in its authors' code:
300 epochs, in the first 200 of which tokens are selected before every encoder
from the third on; then each stage selects once, as in all other phases
(model.layerwise).

Clipping relative to the norm of the weights is missing; the norm of the whole
gradient stands for it. Drop path of LeViT-384 rises with depth; the paper's is
constant. This phase also trains for dropped layers, which the paper's does not;
set --config.dense.mask_weight=0 for the model alone. It has not been run: time
and accuracy are unknown, and steps and learning rates of the other phases are
first guesses.
"""

from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_BATCH = 2304
_STEPS_PER_EPOCH = 1_268_355 // _BATCH
_SIZES = ('128s', '128', '192', '256', '384')


def get_config(variant='256'):
  """Returns the schedule for one of the five models of both families."""
  evo, size = variant.startswith('evo_'), variant.removeprefix('evo_')
  if size not in _SIZES:
    raise ValueError(f'variant {variant!r} of imagenet_levit is unknown; give '
                     f"one of {_SIZES}, or 'evo_' and one of them")
  config = base.default_config()
  # Stem and subsamplings always run, 40 to 50 % of the MACs.
  config.mac_target = 0.75
  config.model.name = f'evo_levit_{size}' if evo else f'levit_{size}'
  config.model.num_fixed = 2 if evo else 1
  if evo:
    config.model.layerwise = 200 / 300
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256
  config.data.update(
      name='folder', on_corrupt='skip', image_size=224, load_size=256,
      holdout=0.01, flip=True, resized_crop=0.08, erasing=0.25, repeats=3,
      mixup=0.8, cutmix=1.0, label_smoothing=0.1)
  config.data.rand_augment.magnitude = 9.0
  config.log_every = 100
  config.eval_every = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every = _STEPS_PER_EPOCH
  config.num_search = 1024
  config.eval_batch_size = 1024
  epochs = dict(dense=300 if evo else 1000, warm_start=5, policy=5, joint=30)
  for phase, num in epochs.items():
    config[phase].update(steps=num * _STEPS_PER_EPOCH, batch_size=_BATCH)
  config.dense.update(
      learning_rate=5e-4 * _BATCH / 512,
      end_lr_factor=1e-5 / (5e-4 * _BATCH / 512),
      warmup=5 / epochs['dense'], weight_decay=0.025, ema=0.99996,
      drop_path=0.1 if size == '384' else 0.)
  config.joint.update(learning_rate=1e-4, policy_lr_factor=10.0, ema=0.9999)
  return config
