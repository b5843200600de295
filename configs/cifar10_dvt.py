"""DVT on CIFAR-10: transformers on 4 x 4 and 8 x 8 tokens, an exit after each.

  python train.py --config=configs/cifar10_dvt.py:cpu --workdir=runs/dvt \\
      --config.data.data_dir=DIR
  python eval.py --workdir=runs/dvt

DIR is the data_dir of a data set that tfds prepared as array_record. The second
transformer reuses features and relations of the first one. Other rows of the
table are the same command with

  each transformer alone  --config.model.grids="(4,)" or "(8,)"
  without reuse           --config.model.reuse_features=False
                          --config.model.reuse_relations=False
  with features alone     --config.model.reuse_relations=False
  with relations alone    --config.model.reuse_features=False

and `python eval.py --curve=shares` draws the curve as the paper does.

`:cpu` is for one CPU core. `:cifar100` is the full schedule on CIFAR-100 (same
command; DIR then holds cifar100), and without a variant it is for CIFAR-10,
each on one GPU; these two have not been run. The paper fine-tunes on images of
224 pixels instead. `:cpu` took 12 minutes on a core of an AMD EPYC. Test
accuracy at the two exits: 64.4 % and 69.6 % (seed 0), 63.9 % and 69.8 % (seed
1); see docs/results/dvt.md.
"""

from adavit_jax.train import config as base

# A tenth of the 50,000 training images is held out.
_NUM_TRAIN = 45_000


def get_config(variant=''):
  """Returns the full schedule, also for 'cifar100'; 'cpu' is for one core."""
  if variant not in ('', 'cpu', 'cifar100'):
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', 'cifar100', "
                     f"or none")
  config = base.default_config()
  config.phases = ('exits',)
  config.mac_target = 0.5
  config.model.name = 'dvt_cifar_32'
  config.model.remat = False
  config.data.update(
      name='tfds:cifar100' if variant == 'cifar100' else 'tfds:cifar10',
      image_size=32, crop_padding=4, flip=True, holdout=0.1)
  config.exits.rule = 'max_probability'
  if variant == 'cpu':
    config.model.unroll = 4
    config.exits.update(steps=1000, batch_size=128, optimizer='muon',
                        learning_rate=5e-3)
    return config
  config.dtype = 'bfloat16'
  config.model.update(width=192, depth=8)
  config.data.update(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
  config.exits.update(steps=300 * _NUM_TRAIN // 256, batch_size=256, ema=0.999)
  config.eval_every = config.checkpoint_every = 10 * _NUM_TRAIN // 256
  return config
