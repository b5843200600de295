"""Multi-Exit ViT on CIFAR-10: early exits on a frozen backbone.

  python train.py --config=configs/cifar10_exits.py:cpu --workdir=runs/exits \\
      --config.data.data_dir=DIR --config.init.workdir=runs/cifar10
  python eval.py --workdir=runs/exits

DIR is the data_dir of a data set that tfds prepared as array_record.
runs/cifar10 is a run of cifar10_policy.py:cpu; its dense phase provides the
backbone. Both commands take 2 minutes on one core of an AMD EPYC (`:cpu_heads`:
10). Test accuracy, seed 0: last exit 83.3 %; cascade 82.5 % at 39 % of the
MACs.

A small LeViT or CrossViT gets exits behind its first two stages by

  --config.model.name=levit_cifar_32 \\
      --config.model.exits="((4,'vit'),(9,'vit'))"
  --config.model.name=crossvit_cifar_32 \\
      --config.model.exits="((3,'vit'),(6,'vit'))"

With `:cpu`, runs/cifar10 is then a run of cifar10_levit.py:cpu or
cifar10_crossvit.py:cpu. With half of their steps, the cascade has 59.2 % (last
exit 60.3 %) and 43.2 % (61.6 %) at half of the MACs, seed 0.

With layer dropping: --config.exits.policy=True --config.init.phase=joint.

Without a variant: trains backbone and exits from scratch on one GPU. It has not
been run; time and accuracy are unknown.
"""

from adavit_jax.models.exit_heads import HEADS
from adavit_jax.train import config as base

# These heads were the best of cpu_heads after 2 and 4 encoders on held-out
# images; after 1 encoder, 'vit' was better than cnn_project.
_EXITS = ((1, 'vit'), (2, 'vit'), (4, 'mlp'))


def get_config(variant=''):
  """Returns the full schedule; 'cpu' and 'cpu_heads' are for CPU cores.

  'cpu_heads' compares all seven heads at each depth.
  """
  config = base.default_config()
  config.mac_target = 0.5
  config.nets.tokens = 'pooled'  # as cifar10_policy.py has it
  config.data.update(
      name='tfds:cifar10', image_size=32, crop_padding=4,
      policy_crop_padding=0, flip=True, holdout=0.1)
  if variant in ('cpu', 'cpu_heads'):
    config.phases = ('classifier_wise',)
    config.init.phase = 'dense'
    config.model.name = 'vit_cifar_conv8_32'
    config.model.update(num_fixed=1, remat=False)
    config.classifier_wise.update(
        steps=1200, batch_size=64, learning_rate=2e-3)
  elif not variant:
    config.phases = ('last_exit', 'classifier_wise')
    config.dtype = 'bfloat16'
    config.model.name = 'vit_cifar_patch4_32'
    config.model.remat = False
    config.data.update(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    config.last_exit.update(steps=52_500, batch_size=256, ema=0.999)
    config.classifier_wise.update(steps=9000, batch_size=256)
  else:
    raise ValueError(f"unknown variant {variant!r}; known: 'cpu', 'cpu_heads', "
                     f"or none")
  config.model.exits = _EXITS
  if variant == 'cpu_heads':
    config.model.exits = tuple((n, head) for n in (2, 4, 6) for head in HEADS)
  return config
