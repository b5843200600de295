"""Layer dropping with a small Shuffle Transformer on CIFAR-10.

  python train.py --config=configs/cifar10_shuffle.py:cpu \\
      --workdir=runs/shuffle --config.data.data_dir=DIR
  python eval.py --workdir=runs/shuffle

DIR is the data_dir of a data set that tfds prepared as array_record. `:cpu` is
meant for 40 minutes on 2 CPU cores; without a variant, the full schedule (300
epochs, bfloat16) is for one GPU. Neither has been run as it is: the numbers of
steps are first guesses. With 1000 dense steps and no policy, test accuracy was
76.2 % after about 30 minutes of one core
(docs/results/efficient_backbones.md).
"""

from adavit_jax.train import config as base

# A tenth of the 50,000 training images is held out.
_NUM_TRAIN = 45_000


def get_config(variant=''):
  """Returns the full schedule; 'cpu' is for two CPU cores."""
  config = base.default_config()
  # The policy decides behind the first stage.
  config.model.name = 'shuffle_cifar_32'
  config.model.remat = False
  config.mac_target = 0.5
  config.nets.tokens = 'pooled'  # the mean over the tokens
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4,
      policy_crop_padding=0, flip=True, holdout=0.1)
  if variant == 'cpu':
    config.dense.update(optimizer='muon', learning_rate=5e-3, steps=2000,
                        drop_path=0.)
    config.warm_start.update(steps=300)
    config.policy.update(steps=150)
    config.joint.update(steps=200)
  elif not variant:
    config.dtype = 'bfloat16'
    config.data.update(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    config.dense.update(steps=300 * _NUM_TRAIN // 256, batch_size=256,
                        ema=0.999)
    config.warm_start.update(steps=3000, batch_size=256)
    config.policy.update(steps=3000, batch_size=256)
    config.joint.update(steps=10_500, batch_size=256)
  else:
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', or none")
  return config
