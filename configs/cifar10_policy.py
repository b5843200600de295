"""Layer dropping on CIFAR-10.

  python train.py --config=configs/cifar10_policy.py:cpu \\
      --workdir=runs/cifar10 --config.data.data_dir=DIR
  python eval.py --workdir=runs/cifar10

DIR is the data_dir of a data set that tfds prepared as array_record. `:cpu` is
for 2 CPU cores. Pinned to one core of an AMD EPYC, the dense phase took 63
minutes, the other phases 15, and evaluation 13 to 19; docs/results/cifar10.md
has the commands. Test accuracy, mean of seeds 0 to 2: dense 83.2 %, adaptive
83.1 % at 35 % of the MACs, 82.6 % at 27 % (mac_target=0.27).

`:cpu_65` has 65 tokens instead of 17 and gains more by choosing per image; its
dense phase takes about 40 minutes on 2 cores, the other phases 15. Test
accuracy, mean of seeds 0 to 2: dense 80.6 %, adaptive 77.5 % at 28 % of the
MACs.

Without a variant: the full schedule (300 epochs, bfloat16) for one GPU. It has
not been run; time and accuracy are unknown.
"""

from adavit_jax.train import config as base


def get_config(variant=''):
  """Returns the full schedule; 'cpu' and 'cpu_65' are for two CPU cores."""
  config = base.default_config()
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4,
      policy_crop_padding=0, flip=True, holdout=0.1)
  # The class token and the mean of the other tokens. All tokens are too many
  # inputs for this number of images and predict difficulty less well.
  config.nets.tokens = 'pooled'
  if variant in ('cpu', 'cpu_65'):
    config.model.update(num_fixed=1, remat=False)
    # No loss on nested depths: with it, two or three encoders reach nearly full
    # accuracy, which leaves the policy nothing to choose.
    config.dense.update(optimizer='muon', learning_rate=5e-3, drop_path=0.0,
                        nested=0.0)
    config.warm_start.update(steps=800)
    config.policy.update(steps=400)
    config.joint.update(steps=500)
  if variant == 'cpu':
    # A static mask can meet it too: one fixed encoder and two MSA layers.
    config.mac_target = 0.352
    config.model.name = 'vit_cifar_conv8_32'
    config.model.unroll = 7
    config.dense.steps = 8000
  elif variant == 'cpu_65':
    # Finer patches: the first encoder alone is less accurate, and later
    # encoders add more.
    config.mac_target = 0.28
    config.model.name = 'vit_cifar_patch4_32'
    config.model.update(stem='conv', width=96, depth=6, unroll=5)
    config.dense.steps = 3600
  elif not variant:
    config.mac_target = 0.6
    config.dtype = 'bfloat16'
    config.model.name = 'vit_cifar_patch4_32'
    config.model.remat = False
    config.data.update(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    config.dense.update(steps=52_500, batch_size=256, ema=0.999)
    config.warm_start.update(steps=3000, batch_size=256)
    config.policy.update(steps=3000, batch_size=256)
    config.joint.update(steps=10_500, batch_size=256)
  else:
    raise ValueError(
        f"unknown variant {variant!r}; known: 'cpu', 'cpu_65', or none")
  return config
