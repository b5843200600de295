"""RAViT on CIFAR-10: branches of 16 and 32 pixels, an exit after each.

  python train.py --config=configs/cifar10_ravit.py:cpu --workdir=runs/ravit \\
      --config.data.data_dir=DIR
  python eval.py --workdir=runs/ravit

DIR is the data_dir of a data set that tfds prepared as array_record. The model
is the paper's 1-3: one encoder at 16 pixels, three at 32. Its dense baselines
with 4 and 3 encoders are the same config with --config.model.layers="(0,4)" and
"(0,3)".

`:cpu` is for one CPU core: 3 epochs, 0.65 s per step on an AMD EPYC. Test
accuracy of 1-3, seed 0: 52.5 %; with exits 52.4 % at 91 % of the MACs, 51.5 %
at 75 %.

Without a variant: the paper's 400 epochs, batch size 256, crops and flips, for
one GPU. Learning rate, weight decay and equal weights of the exits are not the
paper's. It has not been run; time and accuracy are unknown (paper: 84.9 %).
"""

from adavit_jax.train import config as base

# A tenth of the 50,000 training images is held out.
_NUM_TRAIN = 45_000


def get_config(variant=''):
  """Returns the paper's schedule; 'cpu' is for one CPU core."""
  config = base.default_config()
  config.phases = ('exits',)
  config.mac_target = 0.75  # of 1-3 without exits; the last row of Table I
  config.model.name = 'ravit_cifar_patch4_32'
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4, flip=True,
      holdout=0.1)
  if variant == 'cpu':
    config.exits.update(steps=1100, batch_size=128, learning_rate=2e-3)
  elif not variant:
    config.dtype = 'bfloat16'
    config.model.remat = False
    config.exits.update(steps=400 * _NUM_TRAIN // 256, batch_size=256)
    config.eval_every = config.checkpoint_every = 10 * _NUM_TRAIN // 256
  else:
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', or none")
  return config
