"""Layer dropping on CIFAR-10.

  python train.py --config=configs/cifar10_policy.py:cpu \\
      --workdir=runs/cifar10 --config.data.data_dir=DIR
  python eval.py --workdir=runs/cifar10

DIR is the data_dir of a set that tfds prepared as array_record. `:cpu` is for
2 CPU cores: pinned to one core of an AMD EPYC, the dense phase took 63 minutes,
the others, from its end, 15, and evaluation 13 to 19; docs/results/cifar10.md
has the commands. Test accuracy, mean of seeds 0 to 2: dense 83.2 %, adaptive
83.1 % at 35 % of the MACs, 82.6 % at 27 % (mac_target=0.27).

`:cpu_65` has 65 tokens instead of 17 and gains more by choosing per image; its
dense phase takes some 40 minutes on 2 cores, the others 15. Test accuracy, mean
of seeds 0 to 2: dense 80.6 %, adaptive 77.5 % at 28 % of the MACs.

Without a variant: the full schedule (300 epochs, bfloat16) for one GPU. It has
not been run; time and accuracy are not known.
"""

from adavit_jax.train import config as base


def get_config(variant=''):
  """Returns the full schedule, or one of two for two CPU cores."""
  config = base.default_config()
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4,
      policy_crop_padding=0, flip=True, holdout=0.1)
  # The class token and the mean of the others: all tokens are too many for the
  # images there are, and say less about which of them are hard.
  config.nets.tokens = 'pooled'
  if variant in ('cpu', 'cpu_65'):
    config.model.update(num_fixed=1, remat=False)
    # Without the nested depths' loss: with it, two or three encoders alone
    # learn nearly all there is to learn, and nothing is left to choose.
    config.dense.update(optimizer='muon', learning_rate=5e-3, drop_path=0.0,
                        nested=0.0)
    config.warm_start.update(steps=800)
    config.policy.update(steps=400)
    config.joint.update(steps=500)
  if variant == 'cpu':
    # What a static mask can spend too: one fixed encoder and two MSA layers.
    config.mac_target = 0.352
    config.model.name = 'vit_cifar_conv8_32'
    config.model.unroll = 7
    config.dense.steps = 8000
  elif variant == 'cpu_65':
    # Finer patches: the first encoder alone knows less, the others add more.
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
