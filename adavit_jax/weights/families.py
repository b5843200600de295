"""The file layouts of each model family."""

from collections.abc import Callable
from typing import Any, NamedTuple

from adavit_jax.models.crossvit import CrossViT
from adavit_jax.models.dvt import DVT
from adavit_jax.models.evo_deit import EvoDeiT
from adavit_jax.models.evo_levit import EvoLeViT
from adavit_jax.models.levit import LeViT
from adavit_jax.models.shuffle_transformer import ShuffleTransformer
from adavit_jax.models.vil import ViL
from adavit_jax.models.vit import ViT
from adavit_jax.weights import augreg
from adavit_jax.weights import crossvit_tensors
from adavit_jax.weights import dvt_reference
from adavit_jax.weights import evo_levit_tensors
from adavit_jax.weights import evo_tensors
from adavit_jax.weights import hugging_face
from adavit_jax.weights import layout
from adavit_jax.weights import levit_tensors
from adavit_jax.weights import native
from adavit_jax.weights import shuffle_tensors
from adavit_jax.weights import vil_tensors
from adavit_jax.weights import vit_timm


class _Entry(NamedTuple):
  formats: tuple[layout.Format, ...]
  where: dict[str, Any]
  computes: Callable[..., dict]


_FAMILIES = {}
_NONE = _Entry((), {}, lambda model: {})


def register(family, formats, *, where=None, computes=lambda model: {}):
  """Registers the layouts of other libraries for the models of a backbone.

  Args:
    family: a subclass of `Backbone`. Its subclasses must be registered
      separately, since their parameters may differ.
    formats: tuple of `layout.Format`. `save` writes the first one, in which
      every tensor must be one leaf of the parameters, one row of a leaf, or
      `columns` of it.
    where: {attribute: value, or a tuple of several} that a model must have to
      use these layouts.
    computes: (model) -> {fact: value} of what no tensor shows and `stated`
      compares with a config.json: 'activation', 'pool' ('token' or 'avg'),
      'epsilon' and 'norm' of the normalization, 'qkv_bias'.
  """
  _FAMILIES[family] = _Entry(tuple(formats), where or {}, computes)


def computes(model):
  """{fact: value} of what a model computes and no tensor shows."""
  return _FAMILIES.get(type(model), _NONE).computes(model)


def _encoders(encoder, **others):
  """What models of `models.encoder.Encoder` compute."""
  return dict(activation='gelu', norm='layernorm', epsilon=encoder.epsilon,
              qkv_bias=encoder.qkv_bias, **others)


register(ViT, (vit_timm.FORMAT, hugging_face.FORMAT, augreg.FORMAT),
         where={'stem': 'patch'},
         computes=lambda m: _encoders(m.encoder, pool='token'))
register(DVT, (dvt_reference.FORMAT,),
         where={'stem': ('patch', 't2t'), 'num_transformers': 3},
         computes=lambda m: _encoders(m.encoder(0), pool='token'))
register(LeViT, (levit_tensors.TIMM, levit_tensors.AUTHORS),
         computes=lambda m: dict(activation='hard_swish', pool='avg'))
register(CrossViT, (crossvit_tensors.FORMAT,),
         computes=lambda m: _encoders(m.encoder(0), pool='token'))
# The authors' stem has strides of 2 and 2.
register(ShuffleTransformer, (shuffle_tensors.FORMAT,), where={'patch_size': 4},
         computes=lambda m: dict(activation='relu6', pool='avg',
                                 qkv_bias=False))
register(ViL, (vil_tensors.FORMAT,), computes=lambda m: dict(
    activation='gelu', pool='token' if m.num_globals[-1] else 'avg',
    norm='layernorm', epsilon=1e-6, qkv_bias=True))
register(EvoDeiT, (evo_tensors.FORMAT, evo_tensors.DEIT),
         computes=lambda m: _encoders(m.encoder))
register(EvoLeViT, (evo_levit_tensors.FORMAT,),
         computes=lambda m: dict(activation='hard_swish', pool='avg'))


def of(model):
  """Returns the layouts of a model; `save` writes the first one."""
  formats = _FAMILIES.get(type(model), _NONE).formats
  return (native.FORMAT,) if _unfit(model) else (*formats, native.FORMAT)


def _unfit(model):
  """{attribute: values} that the model would need for its family's layouts."""
  where = _FAMILIES.get(type(model), _NONE).where
  several = lambda v: v if isinstance(v, tuple) else (v,)
  return {k: several(v) for k, v in where.items()
          if getattr(model, k) not in several(v)}


def recognize(checkpoint, model=None):
  """Returns the `Format` of a `Checkpoint`, recognized by its tensor names.

  Args:
    checkpoint: `files.Checkpoint`.
    model: a `Backbone` that must have this layout; None for any.

  Raises:
    ValueError: if the layout is unknown, or the model does not have it.
  """
  # The model's layouts come first: names of different families may be similar.
  supported = () if model is None else of(model)
  known = dict.fromkeys(
      [*supported,
       *(fmt for entry in _FAMILIES.values() for fmt in entry.formats),
       native.FORMAT])
  fmt = next((fmt for fmt in known if fmt.recognizes(checkpoint.tensors)), None)
  if fmt is None:
    first = ', '.join(sorted(checkpoint.tensors)[:4]) or 'none'
    raise ValueError(
        f'{checkpoint.path} holds no model in a known layout ('
        f'{"; ".join(fmt.title for fmt in known)}); its first tensors: {first}')
  if model is not None and fmt not in supported:
    needs = ', '.join(
        f'{k}={getattr(model, k)!r} instead of {" or ".join(map(repr, v))}'
        for k, v in _unfit(model).items())
    raise ValueError(
        f'{checkpoint.path} is in the {fmt.title} layout, which a '
        f'{type(model).__name__}{needs and f" with {needs}"} does not have: '
        f'give a file that weights.save wrote for such a model')
  return fmt
