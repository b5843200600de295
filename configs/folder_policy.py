"""A policy on a pretrained ViT or DeiT, for a folder of your images.

  python train.py --config=configs/folder_policy.py --workdir=DIR \\
      --config.init.weights=FILE --config.data.data_dir=IMAGES

IMAGES contains train/CLASS/* and test/CLASS/* or val/CLASS/*, with at least
1000 training images. FILE has the weights of a ViT-Ti/16, from timm, DeiT,
Hugging Face or AugReg; it determines how images are normalized, resized and
cropped. The model gets a new head for the classes of the folder. For another
model add --config.model.name=NAME; for another image size set
--config.model.image_size and --config.data.image_size. A LeViT spends more on
parts that always run, so that a policy needs --config.model.num_fixed=1 and
--config.mac_target=0.75. If the folder has the classes of the file, no
fine-tuning is needed:

      --config.phases='("warm_start", "policy", "joint")'

The schedule is that of a ViT-Ti with 3,600 photographs of ten classes
(docs/results/pretrained.md): at a budget of 0.65, 94.0 % of the test images at
0.65 of the MACs, all layers 95.8 %. That took 95 minutes of one core of an AMD
EPYC; two cores should take about 50, since the first 40 steps of dense ran at
twice the rate. Few steps are not enough: with 100 of dense and 220 of joint
instead of 350 and 350, it was 79.8 % of held-out images. Larger models and sets
need more, and a GPU is faster with --config.dtype=bfloat16.

`:tiny` runs 10 steps of every phase with a DeiT-Ti at 64 x 64 pixels; with 160
images it takes 1.4 minutes on one CPU core.
"""

from adavit_jax.train import config as base


def get_config(variant=''):
  """Returns the schedule of a ViT-Ti; 'tiny' is a short test with DeiT-Ti."""
  if variant not in ('', 'tiny'):
    raise ValueError(f"variant {variant!r} of folder_policy is unknown; give "
                     f"'tiny', or leave it out")
  config = base.default_config()
  config.mac_target = 0.65
  config.model.name = 'vit_tiny_patch16_224'
  config.model.num_fixed = 2
  config.nets.tokens = 'pooled'
  config.nets.hidden = 256

  config.data.name = 'folder'
  config.data.on_corrupt = 'skip'
  config.data.image_size = 224
  config.data.holdout = 0.1
  config.data.flip = True
  config.data.resized_crop = 0.25
  # A policy that is trained on enlarged parts of images keeps fewer layers of
  # whole ones.
  config.data.policy_resized_crop = 0.0
  config.data.label_smoothing = 0.1

  config.eval_batch_size = 64
  config.num_search = 200
  config.num_value = 600
  steps = dict(dense=350, warm_start=60, policy=40, joint=350)
  for phase, num in steps.items():
    config[phase].batch_size = 32
    config[phase].steps = num
  config.dense.learning_rate = 2e-4
  config.policy.samples = 2
  config.joint.samples = 2
  config.joint.learning_rate = 2e-4
  config.joint.policy_lr_factor = 2.5  # the policy's learning rate is 5e-4
  return _shrink(config) if variant == 'tiny' else config


def _shrink(config):
  config.model.name = 'deit_tiny_patch16_224'
  config.model.image_size = 64
  config.data.image_size = 64
  config.data.holdout = 0.2
  config.log_every = 5
  config.num_search = 32
  config.eval_batch_size = 32
  for phase in config.phases:
    config[phase].batch_size = 16
    config[phase].steps = 10
  return config
