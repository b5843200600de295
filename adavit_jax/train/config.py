"""The default config that every file in `configs/` starts from; its checks."""

import difflib
import importlib

from ml_collections import config_dict

from adavit_jax import data
from adavit_jax.models import plan
from adavit_jax.models import registry
from adavit_jax.policies import learned
from adavit_jax.train import phases
from adavit_jax.train import ranges
from adavit_jax.train import step
from adavit_jax.train.phases.phase import choice


def default_config():
  """Returns a `ConfigDict` with all fields; see docs/training.md."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.dtype = 'float32'  # compute dtype; parameters stay float32
  config.phases = ('dense', 'warm_start', 'policy', 'joint')
  config.mac_target = 0.55  # mean MACs per image over the dense model's
  config.data = data.default_config()

  config.model = config_dict.ConfigDict(dict(
      name='vit_digits_patch2_8', unroll=1, remat=True,
      module=''))  # Python module that registers a custom backbone
  for field, kind in registry.fields().items():  # None: the model's default
    config.model[field] = config_dict.placeholder(kind)

  config.nets = config_dict.ConfigDict(dict(
      tokens='all', aux=True, head=True, hidden=0, conv=0, bias=2.0,
      threshold=0.5, decide='networks'))

  config.init = config_dict.ConfigDict(dict(
      workdir='', phase='',  # another run to start from; '': newest checkpoint
      weights=''))  # pretrained file to start from, see weights.load
  config.teacher = config_dict.ConfigDict(dict(
      workdir='', phase='',  # a run to learn from; '': newest checkpoint
      weights='', model='',  # or a file of weights and the name of its model
      phases=('dense',)))  # that learn from it; known: dense, joint, static
  config.mesh = config_dict.ConfigDict(dict(
      data=-1,  # devices that share a batch; -1: all that there are
      fsdp=1))  # that share a batch and the state, see train.sharded
  # Steps in one program; above 1, devices hold all images, see train.resident.
  config.steps_per_call = 1
  config.log_every = 50
  config.eval_every = 500
  config.checkpoint_every = 500
  config.num_search = 1000  # held-out images for masks and the budget
  config.num_value = 10_000  # training images to fit the value policy to
  config.eval_batch_size = 256
  for name, phase in phases.PHASES.items():
    config[name] = config_dict.ConfigDict(dict(phase.defaults))
  return config


def import_module(name):
  """Imports the Python module named by `config.model.module`, if any.

  Raises:
    ValueError: if the module is not found.
  """
  if name:
    if name.startswith('.'):
      raise ValueError(f'model.module={name!r} is relative; give the full name '
                       f'of the module')
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as e:
      raise ValueError(f'model.module={name!r} cannot be imported ({e}); is '
                       f'its folder in PYTHONPATH?') from e


def model_overrides(config):
  """Returns the model attributes that the config overrides."""
  return {field: config.model[field] for field in registry.fields()
          if config.model[field] is not None}


def trains_policy(config):
  """Returns whether a phase of the config trains policy networks."""
  return bool(phases.training('policy', config.phases))


def uses_policy(config):
  """Returns whether a run of the config has policy networks."""
  return config.exits.policy or trains_policy(config)


def policy_nets(config, model):
  """Returns the `PolicyNets` of the config for a `Backbone`.

  Raises:
    ValueError: if the backbone has no MSA or no MLP layers to drop, or
      `nets.conv` does not fit the tokens.
  """
  c, num_layers = config.nets, plan.num_layers(model)
  if not all(num_layers):
    raise ValueError(f'num_fixed={model.num_fixed} leaves {num_layers.msa} MSA '
                     f'and {num_layers.mlp} MLP layers to drop, but a policy '
                     f'needs both; set it lower')
  at = plan.tokens_at(model, model.num_fixed)
  if c.conv and (c.tokens != 'all' or at.grid is None):
    raise ValueError(f'nets.conv={c.conv} convolves a grid of all tokens, but '
                     f'nets.tokens={c.tokens!r}, and the grid at num_fixed='
                     f'{model.num_fixed} is {at.grid}; set nets.tokens=all, or '
                     f'nets.conv=0')
  return learned.PolicyNets(
      num_layers=tuple(num_layers), num_classes=model.num_classes,
      tokens=c.tokens, aux=c.aux, head=c.head, hidden=c.hidden, conv=c.conv,
      at=at if c.conv else None, bias=c.bias, decide=c.decide)


def has_teacher(config):
  """Returns whether a phase of the config learns from another model."""
  return bool(config.teacher.workdir or config.teacher.weights)


def _check_teacher(config):
  c, known = config.teacher, phases.having('taught')
  for name in c.phases:
    choice('teacher.phases', name, known)
  if not has_teacher(config):
    if c.model:
      raise ValueError(f'teacher.model={c.model!r} is set without '
                       f'teacher.weights; set that to its file')
    return
  if c.workdir and c.weights:
    raise ValueError(f'teacher.workdir={c.workdir!r} and teacher.weights='
                     f'{c.weights!r} are both set, but there is only one '
                     f'teacher; unset one of them')
  if bool(c.weights) != bool(c.model):
    raise ValueError(f'teacher.weights={c.weights!r} and teacher.model='
                     f'{c.model!r} go together: a file and the name of the '
                     f'model in it; set both or none')
  taught = set(c.phases).intersection(config.phases)
  if not taught:
    raise ValueError(f'teacher.phases={tuple(c.phases)} has none of the phases '
                     f'of this run, {tuple(config.phases)}; add one of '
                     f'{known}, or leave the teacher out')
  for name in sorted(taught):
    if not config[name].distill:
      raise ValueError(f'{name}.distill=0 leaves the teacher unused in this '
                       f'phase; set it to 0.5, or leave {name!r} out of '
                       f'teacher.phases')


def check_value_policy(config):
  """Checks that the value policy is fitted to the model that it decides for.

  Runs that are over may decide by it whatever they trained.

  Args:
    config: of a new run.

  Raises:
    ValueError: if nets.decide is 'value' and a phase needs another order.
  """
  if config.nets.decide != 'value' or not uses_policy(config):
    return
  if 'policy' in config.phases:
    raise ValueError("nets.decide='value' does not use the networks that the "
                     "phase 'policy' trains; leave it out of config.phases, or "
                     "set nets.decide='networks'")
  fitted = bool(config.init.workdir)
  for name in config.phases:
    uses = phases.decider(config, name) == 'policy'
    if name == 'warm_start':
      fitted = True
    elif phases.PHASES[name].from_scratch and not uses:
      fitted = False  # the features that it was fitted to change
    elif uses and not fitted:
      raise ValueError(f"nets.decide='value' needs the phase 'warm_start', "
                       f'before which the value policy is fitted, before '
                       f"{name!r}; add it to config.phases, or set "
                       f"nets.decide='networks'")


def _check_set(config, default, part=''):
  """Checks that fields whose default is a value have one."""
  for name, value in default.items():
    field = f'{part}{name}'
    if isinstance(value, config_dict.ConfigDict):
      _check_set(config[name], value, f'{field}.')
    elif value is not None and config[name] is None:
      raise ValueError(f'{field}=None has no meaning; leave out the field, or '
                       f'give a value such as its default {value!r}')


def _check_augmentation(config):
  data.check_augmentation(config.data)
  for phase in config.phases:
    try:
      data.check_augmentation(step.augmentation(config, phase))
    except ValueError as error:
      raise ValueError(
          f'phase {phase!r}: {error}. Phases with a policy or a dense teacher '
          f'use data.policy_crop_padding and data.policy_resized_crop where '
          f'they are set') from error


def check(config):
  """Raises a ValueError that names the field if a value is invalid."""
  _check_set(config, default_config())
  known = tuple(phases.PHASES)
  if not config.phases:
    raise ValueError(f'config.phases is empty; choose from {known}')
  for name in config.phases:
    if name not in known:
      close = difflib.get_close_matches(str(name), known, n=1)
      hint = f'did you mean {close[0]!r}?' if close else f'known: {known}'
      raise ValueError(f'config.phases has {name!r}; {hint}')
  ranges.check(config, phases.PHASES)
  for name in config.phases:
    if (config[name].optimizer == 'muon'
        and 'backbone' not in phases.PHASES[name].trains):
      raise ValueError(f"{name}.optimizer='muon' is for encoders, but this "
                       f"phase trains none; set {name}.optimizer=adamw")
  if len(set(config.phases)) < len(config.phases):
    raise ValueError(f'config.phases={config.phases} names a phase twice')
  _check_augmentation(config)
  choice('dtype', config.dtype, ('float32', 'bfloat16'))
  choice('nets.tokens', config.nets.tokens, ('all', 'pooled'))
  choice('nets.decide', config.nets.decide, ('networks', 'value'))
  init = config.init
  if init.workdir and init.weights:
    raise ValueError(f'init.workdir={init.workdir!r} and init.weights='
                     f'{init.weights!r} are both set, but parameters come from '
                     f'only one of them; unset the other')
  for name, source in (('init', init), ('teacher', config.teacher)):
    if source.phase and not source.workdir:
      raise ValueError(f'{name}.phase={source.phase!r} is of the run '
                       f'{name}.workdir, which is not set; set it too')
  _check_teacher(config)
  if (config.exits.policy and not init.workdir
      and not trains_policy(config)):
    raise ValueError('exits.policy=True needs a run that trained a policy; set '
                     '--config.init.workdir=DIR')
  scratch = phases.having('from_scratch')
  if config.phases[0] not in scratch and not (init.workdir or init.weights):
    raise ValueError(f'phase {config.phases[0]!r} needs a trained model; set '
                     f'--config.init.workdir=DIR or --config.init.weights=FILE,'
                     f' or start with one of the phases {scratch}')
