"""Compares what the config.json beside a file states with the model.

Other numbers of heads, activations or poolings have the same tensors and other
logits. Names of fields are those of timm and Hugging Face, at any depth.
"""

import math
import re

from absl import logging

from adavit_jax import models
from adavit_jax.models import vil_arch
from adavit_jax.models.vil import ViL
from adavit_jax.weights import config_json
from adavit_jax.weights import families

_HEADS = ('num_heads', 'heads')
_WIDTH = ('width', 'widths')
_DEPTH = ('depth', 'depths')
# Attributes of a model, by their names there.
_ATTRIBUTES = dict(
    num_attention_heads=_HEADS, num_heads=_HEADS, hidden_size=_WIDTH,
    hidden_sizes=_WIDTH, embed_dim=_WIDTH, num_hidden_layers=_DEPTH,
    depth=_DEPTH, depths=_DEPTH, patch_size=('patch_size', 'patch_sizes'),
    intermediate_size=('mlp_dim',), mlp_ratio=('mlp_ratio',),
    num_channels=('channels',), in_chans=('channels',), key_dim=('key_dim',),
    img_scale=('scales',), window_size=('window_size',),
    sw_exact=('exact_windows',))
# Facts of `families.computes`, by their names there.
_FACTS = dict(
    hidden_act='activation', act_layer='activation',
    attn_act_layer='activation', activation='activation',
    activation_function='activation', global_pool='pool', pooling='pool',
    use_mean_pooling='pool', layer_norm_eps='epsilon',
    layer_norm_epsilon='epsilon', norm_eps='epsilon', ln_eps='epsilon',
    qkv_bias='qkv_bias', norm_layer='norm', block_fn='block', attn_layer='attn',
    mlp_layer='mlp', crop_scale='crop_scale', use_rope='rope',
    use_rot_pos_emb='rope')
_ALWAYS = dict(crop_scale=False, rope=False, block='block', attn='attn',
               mlp='mlp')
_SAME = dict(cls='token', clstoken='token', mean='avg', gap='avg',
             gelupython='gelu', layernormfp32='layernorm', attention='attn')
_IMAGES = ('image_size', 'img_size', 'input_size')
_LABELS = ('id2label', 'label2id', 'label_descriptions')
# What the name of an architecture tells, where no field does.
_NAMED = (
    ('quickgelu', 'act_layer', 'quick_gelu'),
    ('_gap_', 'global_pool', 'avg'),
    ('_siglip', 'global_pool', 'map'),
    ('_rope', 'use_rope', True),
    ('levit_(conv_)?(256d|384_s8|512)', 'act_layer', 'silu'))
# The logits of a pretrained ViT-Ti (deviation 2.5) change by 4e-4 if epsilon is
# 1e-5 instead of 1e-6, and by 4e-3 at 1e-4.
_EPSILON = 2e-5


def check(model, checkpoint, patches=0):
  """Checks a model that has the tensors of a file.

  Args:
    model: a `Backbone`.
    checkpoint: `files.Checkpoint`.
    patches: number of patches in the file's position embedding; 0 if it has
      none, or several.

  Raises:
    ValueError: if the config.json beside the file cannot be read or contradicts
      the model; names all fields and both values.
  """
  config = config_json.beside(checkpoint.path)
  if config is None:
    return
  stated = list(_leaves(config.fields))
  _warn(model, config, {key: value for _, key, value in stated})
  stated += _by_name(model, stated)
  wrong = [text for path, key, value in stated
           if (text := _contradiction(model, path, key, value))]
  if config.form == 'Hugging Face':
    wrong += _other_grid(config.fields, patches)
  if wrong:
    raise ValueError(
        f'{config.path} contradicts the model: '
        f'{"; ".join(dict.fromkeys(wrong))}: create the model with these '
        f'values, give other weights if it cannot have them, or remove '
        f'{config.path.name} if it is of another file')


def _warn(model, config, stated):
  """Logs what cannot be compared."""
  kind = stated.get('model_type', 'vit')
  if not config.form:
    logging.warning(
        '%s is in a form that is not known (its keys: %s): it is compared with '
        'the model only where its keys are those of timm or Hugging Face.',
        config.path, config.keys())
  elif config.form == 'Hugging Face' and kind not in ('vit', 'deit'):
    logging.warning('%s states model_type=%r: it is read as a %s.', config.path,
                    kind, type(model).__name__)
  name = stated.get('architecture')
  if config.form and _attribute(model, ('num_heads', 'num_globals'))[0] and (
      not {'num_heads', 'num_attention_heads'} & stated.keys()
      and _heads(model, name) is None):
    logging.warning(
        '%s does not tell the number of heads (architecture=%r), and no tensor '
        "shows it: the model's own is used.", config.path, name)


def _base(architecture):
  """The name of an architecture without the tag of its weights."""
  return architecture.split('.')[0]


def _leaves(fields, path=''):
  """Yields (path, key, value) of all fields, also of nested ones."""
  for key, value in fields.items():
    if isinstance(value, dict) and key not in _LABELS:
      yield from _leaves(value, f'{path}{key}.')
    elif value is not None:
      yield f'{path}{key}', key, value


def _by_name(model, stated):
  """What the name of the architecture tells and no field does."""
  keys, found = {key for _, key, _ in stated}, []
  for _, field, name in stated:
    if field not in ('architecture', 'arch') or not isinstance(name, str):
      continue
    tells = {key: value for pattern, key, value in _NAMED
             if re.search(pattern, name)}
    heads = _heads(model, name)
    if heads is not None:
      tells['num_heads'] = heads
    found += [(f'{field}={name!r}, of {key}', key, value)
              for key, value in tells.items() if key not in keys]
  return found


def _heads(model, name):
  """Number of heads of an architecture as wide as the model, or None."""
  name = str(name)
  if _base(name) in models.names():
    there = models.create(_base(name))
    if type(there) is type(model) and (
        _attribute(there, _WIDTH) == _attribute(model, _WIDTH)):
      return _attribute(there, _HEADS)[1]
  elif isinstance(model, ViL):
    try:
      return vil_arch.parse(name)['heads']
    except ValueError:
      pass  # not a name of this kind
  return None


def _attribute(model, names):
  """(name, value) of the first attribute that a model has, else ('', None)."""
  name = next((name for name in names if hasattr(model, name)), '')
  return name, getattr(model, name, None)


def _contradiction(model, path, key, value):
  """Describes how a field contradicts the model, or ''."""
  if key in _ATTRIBUTES:
    name, ours = _attribute(model, _ATTRIBUTES[key])
    same = ours is None or _equal(key, value, ours)
    return '' if same else f'{path}={value!r} and not {name}={ours!r}'
  if key in _IMAGES:
    square = not isinstance(value, list) or len({*map(str, value[-2:])}) == 1
    return '' if square else (f'{path}={value!r} and not the square image_size='
                              f'{model.image_size!r}')
  if key == 'qk_scale':
    ours = (_attribute(model, _WIDTH)[1], _attribute(model, _HEADS)[1])
    if not all(isinstance(x, int) for x in ours):
      return ''
    ours = (ours[0] / ours[1])**-0.5
    return '' if _equal(key, value, ours) else (
        f'{path}={value!r} and not {ours:.4g}')
  return _other_fact(model, path, key, value)


def _other_fact(model, path, key, value):
  """Describes how a field contradicts what the model computes, or ''."""
  facts = _ALWAYS | families.computes(model)
  ours = facts.get(_FACTS.get(key))
  if ours is None or value == '':
    return ''
  if key == 'use_mean_pooling':
    same = value == (ours == 'avg')
  elif isinstance(ours, float):
    same = isinstance(value, (int, float)) and abs(value - ours) < _EPSILON
  else:
    same = _plain(value) == _plain(ours)
  return '' if same else (f'{path}={value!r} and not {ours!r}, which '
                          f'{type(model).__name__} has here')


def _plain(value):
  """A name without module, case and underscores."""
  text = str(value).split('.')[-1].replace('_', '').lower()
  return _SAME.get(text, text)


def _equal(key, value, ours):
  """Whether a stated value is an attribute's, or cannot be compared with it."""
  several = isinstance(value, (list, tuple))
  values = list(value) if several else [value]
  if not values or not all(isinstance(x, (int, float)) for x in values):
    return True  # CrossViT's depths are nested; the tensors show them.
  if isinstance(ours, tuple) == several:
    ours = ours if isinstance(ours, tuple) else [ours]
  elif key not in _ATTRIBUTES or _ATTRIBUTES[key] != _HEADS:
    return True  # Numbers of stages against one number; the tensors show them.
  elif isinstance(ours, tuple):
    values = values * len(ours)
  else:
    ours = [ours] * len(values)
  return len(values) == len(ours) and all(
      math.isclose(x, y, rel_tol=1e-3) for x, y in zip(values, ours))


def _other_grid(fields, patches):
  """Contradiction of a config's image with the file's position embedding."""
  size, patch = fields.get('image_size'), fields.get('patch_size')
  if not (patches and isinstance(size, int) and isinstance(patch, int)
          and 0 < patch <= size) or (size // patch)**2 == patches:
    return []
  return [f'image_size={size} and patch_size={patch} make '
          f'{(size // patch)**2} patches and not {patches}, of which the file '
          f'has positions']
