"""Layer dropping with Vision Longformer on ImageNet: `:tiny_224`, ...

On every host of a TPU slice, or without --distributed on a machine with GPUs:

  python train.py --config=configs/imagenet_vil.py:small_224 --distributed \\
      --config.data.data_dir=DIR --workdir=gs://BUCKET/RUN

A variant is the name of a model without 'vil_', or an architecture string of
the authors (`vil_arch.parse`), for images of 224 pixels. DIR contains
train/CLASS/*.jpg and val/CLASS/*.jpg. For a data set that tfds prepared as
array_record add --config.data.name=tfds:imagenet2012; DIR is then its data_dir.
From a trained model, leave out the first phase:

  --config.phases="('warm_start','policy','joint')" --config.init.weights=FILE

The dense phase has the epochs, batch size, learning rate, weight decay, drop
path, RandAugment, random erasing, mixing and label smoothing of the authors'
code at 224 pixels. For the first 75 % of its steps, each chunk of tokens sees
one of its eight neighbors, drawn in each encoder and step; then it sees all of
them, as in all other phases (model.random_shift; 0 switches it off, 0.875 is
the authors' for one of their models). Drop path rises over the layers behind
the policy; in the authors' code, over all. This phase also trains for dropped
layers, which theirs does not; set --config.dense.mask_weight=0 for the model
alone. Models of 384 pixels were fine-tuned by the authors, from weights of
ImageNet-22k and by another recipe: start from such weights. It has not been
run: time and accuracy are unknown, and steps and learning rates of the other
phases are first guesses.
"""

from adavit_jax.models import vil_arch
from adavit_jax.train import config as base

# 1 % of the 1,281,167 training images is held out.
_BATCH = 1024
_STEPS_PER_EPOCH = 1_268_355 // _BATCH
_MODELS = sorted(name.removeprefix('vil_') for name, model in
                 vil_arch.MODELS.items() if model['num_classes'] == 1000)


def get_config(variant='small_224'):
  """Returns the schedule for a model or an architecture string."""
  config = base.default_config()
  config.dtype = 'bfloat16'
  config.mac_target = 0.65
  if variant in _MODELS:
    config.model.name = f'vil_{variant}'
    depths = vil_arch.MODELS[config.model.name]['depths']
  elif variant.startswith('l1'):
    config.model.name = 'vil_tiny_224'
    config.model.update(vil_arch.parse(variant))
    depths = config.model.depths
  else:
    raise ValueError(f'variant {variant!r} of imagenet_vil is unknown; give '
                     f'one of {_MODELS}, or an architecture string')
  size = vil_arch.MODELS[config.model.name]['image_size']
  # The policy decides before the last two stages, those of full attention.
  config.model.num_fixed = sum(depths[:-2])
  config.model.random_shift = 0.75
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256
  config.data.update(
      name='folder', on_corrupt='skip', image_size=size,
      load_size=416 if size == 384 else 256, holdout=0.01, flip=True,
      resized_crop=0.08, erasing=0.25, mixup=0.8, cutmix=1.0,
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
      learning_rate=1e-3, end_lr_factor=1e-6 / 1e-3, warmup=5 / 300,
      weight_decay=0.1, drop_path=0.1, clip_norm=0.)
  config.joint.update(learning_rate=1e-4, policy_lr_factor=10.0, ema=0.9999)
  return config
