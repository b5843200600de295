"""Layer dropping with a small Evo-ViT on CIFAR-10.

  python train.py --config=configs/cifar10_evo.py:cpu --workdir=runs/evo \\
      --config.data.data_dir=DIR
  python eval.py --workdir=runs/evo

DIR is the data_dir of a data set that tfds prepared as array_record. `:cpu` is
meant for 40 minutes on 2 CPU cores; without a variant, the full schedule (300
epochs, bfloat16) is for one GPU. Neither has been run as it is: the numbers of
steps are first guesses. With 1000 dense steps and no policy, test accuracy was
64.9 % after about 17 minutes of one core
(docs/results/fewer_tokens.md).
"""

from adavit_jax.train import config as base

# A tenth of the 50,000 training images is held out.
_NUM_TRAIN = 45_000


def get_config(variant=''):
  """Returns the full schedule; 'cpu' is for two CPU cores."""
  config = base.default_config()
  config.model.name = 'evo_cifar_32'
  # The policy decides where the tokens are selected first.
  config.model.layerwise = 2 / 3  # of the dense phase
  config.model.remat = False
  config.mac_target = 0.5
  config.nets.tokens = 'pooled'
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
                        weight_decay=0.05, ema=0.999)
    config.warm_start.update(steps=3000, batch_size=256)
    config.policy.update(steps=3000, batch_size=256)
    config.joint.update(steps=10_500, batch_size=256)
  else:
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', or none")
  return config
