"""RAViT on CIFAR-10: branches of 16 and 32 pixels, an exit after each.

  python train.py --config=configs/cifar10_ravit.py:cpu --workdir=runs/ravit \\
      --config.data.data_dir=DIR
  python eval.py --workdir=runs/ravit --threshold=-0.05

DIR is the data_dir of a data set that tfds prepared as array_record. The model
is the paper's 1-3: one encoder at 16 pixels, three at 32. Its dense baselines
with 3, 4 and 5 encoders are the same config with --config.model.layers="(0,3)",
"(0,4)" and "(0,5)". `python benchmarks/tables.py ravit_cifar10` trains and
compares all of them, see docs/tables.md.

Without a variant: the paper's recipe, for one GPU. Printed there: all 50,000
training images, 400 epochs, batch size 256, AdamW with cosine decay, patches of
4 pixels, width 128, MLP 512, crops with a padding of 4, flips. It names no
warm-up and no clipping; there are none. Its text as we have it lacks numbers,
which are ours: learning rate 1e-3, weight decay 0.05, decay rates 0.9 and
0.999, decay of the learning rate to 0, equal weights of the exits, 4 attention
heads, mean and deviation of the training images for their normalization. It has
not been run; time and accuracy are unknown (paper: 84.9 %). --config.dtype=
bfloat16 is faster on many devices; the paper does not say what it used.

`:cpu` is ours, for CPU cores: 20 epochs with Muon, warm-up and clipping, batch
size 128. Unrolled encoders and a batch in 16 parts take less CPU time
(docs/tables.md). Seed 0 took 73 minutes on one core of an Intel Xeon, seed 1 83
on one of an AMD EPYC: 82.17 and 82.46 % of the test images at the last exit,
57.40 and 56.73 % at the first (docs/results/cifar10_ravit.md).
No label is smoothed and no image mixed, since both keep entropies away from 0,
and the paper's thresholds of 0.05 and 0.15 would lose their meaning.

No image is held out, as in the paper, so that eval.py needs a --threshold.
--config.data.holdout=0.1 holds out 5,000 images, on which it then calibrates
thresholds; the model learns from a tenth less, and the same number of steps
makes more epochs.
"""

from adavit_jax.train import config as base

_NUM_TRAIN = 50_000


def get_config(variant=''):
  """Returns the paper's recipe; 'cpu' is for CPU cores."""
  config = base.default_config()
  config.phases = ('exits',)
  config.mac_target = 0.75  # of 1-3 without exits; the last row of Table I
  config.model.name = 'ravit_cifar_patch4_32'
  config.model.remat = False
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4, flip=True, holdout=0.)
  config.exits.update(
      steps=400 * _NUM_TRAIN // 256, batch_size=256, warmup=0.0, clip_norm=0.0,
      end_lr_factor=0.0)
  config.eval_every = config.checkpoint_every = 10 * _NUM_TRAIN // 256
  if variant == 'cpu':
    config.model.unroll = 5
    config.exits.update(
        optimizer='muon', learning_rate=5e-3, warmup=0.05, clip_norm=1.0,
        batch_size=128, accumulate=16, steps=-(-20 * _NUM_TRAIN // 128))
    config.eval_every = config.checkpoint_every = 500
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', or none")
  return config
