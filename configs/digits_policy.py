"""Layer dropping on scikit-learn's 8x8 digits; no download.

  python train.py --config=configs/digits_policy.py --workdir=runs/digits
  python eval.py --workdir=runs/digits

On 2 cores of an AMD EPYC, training takes 3 minutes and evaluation 1.5 (seed 0).
Test accuracy, mean of seeds 0 to 2: dense 91.9 %, adaptive 92.1 % at 55 % of
the MACs.
"""

from adavit_jax.train import config as base


def get_config(variant=''):
  """Returns the schedule; 'patent' is the plain form of US 12,394,190."""
  config = base.default_config()
  config.data.update(name='digits', image_size=8, crop_padding=1, mixup=0.4)
  config.model.name = 'vit_digits_patch2_8'
  config.dense.update(steps=1000, learning_rate=2e-3)
  config.warm_start.update(steps=400)
  config.policy.update(steps=300)
  config.joint.update(steps=500, batch_size=64)
  if variant == 'patent':
    _patent(config)
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; known: 'patent', or none")
  return config


def _patent(config):
  # Each policy network is one dense layer on z1 alone. The rewards are R1 and
  # R2 (equations 15 and 16) with a frozen ViT, then R (equation 12) with the
  # losses of figure 3B.
  config.phases = ('dense', 'policy', 'joint')
  config.model.distillation = True
  config.nets.update(aux=False, head=False)
  config.dense.update(nested=0.0, mask_weight=0.0)
  rl = dict(baseline='greedy', samples=1, alpha=3.0, bound=0.95, entropy=0.01,
            normalize=False)
  config.policy.update(reward='split', curriculum=0.3, **rl)
  config.joint.update(
      reward='layers', sampled=1.0, representation=0.1, **rl)
