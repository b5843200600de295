"""The configuration every file in `configs/` starts from, and its checks."""

import difflib

from ml_collections import config_dict

from adavit_jax import data
from adavit_jax.policies import learned
from adavit_jax.train import optimizer
from adavit_jax.train import ranges

PHASES = ('dense', 'warm_start', 'policy', 'joint', 'static', 'exits',
          'last_exit', 'classifier_wise', 'layer_wise')
# The others start from a trained model.
FROM_SCRATCH = ('dense', 'exits', 'last_exit', 'layer_wise')
# These train policies or heads alone.
WITHOUT_ENCODERS = ('warm_start', 'policy', 'classifier_wise')
# These learn from the dense model too, and see one true class an image.
TAUGHT = ('warm_start', 'policy', 'joint', 'static')


def default_config():
  """Returns a `ConfigDict` with every field there is; see README.md."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.dtype = 'float32'  # compute dtype; parameters stay float32
  config.phases = ('dense', 'warm_start', 'policy', 'joint')
  config.mac_target = 0.55  # mean MACs per image over the dense model's
  config.data = data.default_config()

  config.model = config_dict.ConfigDict(dict(
      name='vit_digits_patch2_8', unroll=1, remat=True))
  for field, kind in _MODEL_FIELDS.items():  # None: as the name has it
    config.model[field] = config_dict.placeholder(kind)

  config.nets = config_dict.ConfigDict(dict(
      tokens='all', aux=True, head=True, hidden=0, bias=2.0, threshold=0.5))

  config.init = config_dict.ConfigDict(dict(
      workdir='', phase='',  # start from another run; '' phase: its newest
      weights=''))  # start from other people's weights: see weights.load
  config.log_every = 50
  config.eval_every = 500
  config.checkpoint_every = 500
  config.num_search = 1000  # held-out images for the greedy static search
  config.eval_batch_size = 256

  optim = dict(
      optimizer='adamw', steps=1000, batch_size=128, learning_rate=1e-3,
      warmup=0.05, end_lr_factor=0.01, weight_decay=0.05, clip_norm=1.0, b1=0.9,
      b2=0.999, ema=0.0)
  config.dense = config_dict.ConfigDict(dict(
      optim, drop_path=0.1, nested=0.5, random_masks=0.5, mask_weight=0.5))
  config.warm_start = config_dict.ConfigDict(dict(
      optim, learning_rate=3e-3, weight_decay=0.0, masks=4))
  rl = dict(reward='macs', alpha=2.5, samples=4, baseline='leave_one_out',
            bound=0.95, entropy=0.002, price=0.3, price_rate=0.02, aux=1.0,
            normalize=True)  # advantages divided by their deviation
  config.policy = config_dict.ConfigDict(dict(
      optim, learning_rate=3e-3, weight_decay=0.0, curriculum=0.0, **rl))
  path = dict(distill=0.5, temperature=2.0, hard_distill=False,
              representation=0.0)
  config.joint = config_dict.ConfigDict(dict(
      optim, learning_rate=5e-4, policy_lr_factor=2.0, sampled=0.3, **path,
      **{**rl, 'price_rate': 0.05}))
  config.static = config_dict.ConfigDict(dict(
      optim, learning_rate=5e-4, policy='table_1', number=4, which='first',
      survival=0.5, keep='', **path))
  config.exits = config_dict.ConfigDict(dict(
      optim, weights=(1.,),  # of the exits' losses, see staged.weights
      rule='entropy',  # see exits.confidence.RULES
      slack=0.005,  # accuracy that a cascade may lose; or the target's unit
      policy=False))  # a trained policy drops layers too
  config.last_exit = config_dict.ConfigDict(optim)
  # Clipped by a common norm, the heads would learn from one another.
  config.classifier_wise = config_dict.ConfigDict(dict(optim, clip_norm=0.0))
  config.layer_wise = config_dict.ConfigDict(optim)
  return config


_MODEL_FIELDS = dict(
    image_size=int, patch_size=int, width=int, depth=int, num_heads=int,
    num_fixed=int, mlp_ratio=float, stem=str, distillation=bool,
    layers=tuple, factors=tuple, shared_stem=bool,  # RAViT
    exits=tuple)  # of a ViT: see MultiExit


def model_overrides(config):
  """The attributes of the model that the config sets itself."""
  return {field: config.model[field] for field in _MODEL_FIELDS
          if config.model[field] is not None}


def policy_nets(config, model):
  """`PolicyNets` of the config for a `ViT`."""
  c = config.nets
  return learned.PolicyNets(
      num_layers=model.num_adaptive, num_classes=model.num_classes,
      tokens=c.tokens, aux=c.aux, head=c.head, hidden=c.hidden, bias=c.bias,
      num_candidates=3 * (2 * model.num_adaptive + 1))


def check(config):
  """Raises a ValueError that names the field for values that cannot work."""
  if not config.phases:
    raise ValueError(f'config.phases is empty; give some of {PHASES}')
  for phase in config.phases:
    if phase not in PHASES:
      close = difflib.get_close_matches(str(phase), PHASES, n=1)
      hint = f'did you mean {close[0]!r}?' if close else f'known: {PHASES}'
      raise ValueError(f'config.phases has {phase!r}; {hint}')
  ranges.check(config)
  for phase in config.phases:
    c = config[phase]
    optimizer.make_optimizer(c, c.steps)
    if c.optimizer == 'muon' and phase in WITHOUT_ENCODERS:
      raise ValueError(f"{phase}.optimizer='muon' is for encoders, and this "
                       f"phase trains none; set {phase}.optimizer=adamw")
  if len(set(config.phases)) < len(config.phases):
    raise ValueError(f'config.phases={config.phases} names a phase twice')
  data.check_augmentation(config.data)
  _choice('dtype', config.dtype, ('float32', 'bfloat16'))
  _choice('nets.tokens', config.nets.tokens, ('all', 'pooled'))
  for phase in ('policy', 'joint'):
    c = config[phase]
    _choice(f'{phase}.reward', c.reward, ('macs', 'layers', 'split'))
    _choice(f'{phase}.baseline', c.baseline, ('leave_one_out', 'greedy'))
    if c.baseline == 'leave_one_out' and c.samples < 2:
      raise ValueError(f'{phase}.samples={c.samples}: the leave_one_out '
                       f'baseline needs at least 2; or set baseline=greedy')
  _choice('static.policy', config.static.policy,
          ('table_1', 'stochastic', 'mask'))
  if 'layer_wise' in config.phases and config.layer_wise.ema:
    raise ValueError(f'layer_wise.ema={config.layer_wise.ema} must be 0: every '
                     f'stage is trained on the ones that are frozen, and not '
                     f'on their average')
  init = config.init
  if init.workdir and init.weights:
    raise ValueError(f'init.workdir={init.workdir!r} and init.weights='
                     f'{init.weights!r}: parameters come from one of the two; '
                     f'unset the other')
  if (config.phases[0] not in FROM_SCRATCH
      and not (init.workdir or init.weights)):
    raise ValueError(f'phase {config.phases[0]!r} starts from a trained model; '
                     f'set --config.init.workdir=DIR or --config.init.weights='
                     f'FILE, or begin with one of the phases {FROM_SCRATCH}')


def _choice(name, value, known):
  if value not in known:
    raise ValueError(f'{name}={value!r}; known: {list(known)}')
