"""The layouts that the files of a model may have."""

from typing import Any, NamedTuple

from adavit_jax.models.vit import ViT
from adavit_jax.weights import augreg
from adavit_jax.weights import hugging_face
from adavit_jax.weights import layout
from adavit_jax.weights import own
from adavit_jax.weights import timm


class _Entry(NamedTuple):
  formats: tuple[layout.Format, ...]
  where: dict[str, Any]


_FAMILIES = {}


def register(family, formats, *, where=None):
  """Adds the layouts in which other libraries have the models of a backbone.

  Args:
    family: a subclass of `Backbone`. What derives from it is another family:
      its parameters may be others.
    formats: tuple of `layout.Format`; `save` writes the first one, in which
      every tensor is one leaf of the parameters or one row of it.
    where: {attribute: value} of the models that this holds for.
  """
  _FAMILIES[family] = _Entry(tuple(formats), where or {})


register(ViT, (timm.FORMAT, hugging_face.FORMAT, augreg.FORMAT),
         where={'stem': 'patch'})


def of(model):
  """Returns the layouts of a model, the one to be written first."""
  formats, _ = _FAMILIES.get(type(model), _Entry((), {}))
  return (own.FORMAT,) if _unfit(model) else (*formats, own.FORMAT)


def _unfit(model):
  """{attribute: value} that a model lacks for the layouts of its family."""
  _, where = _FAMILIES.get(type(model), _Entry((), {}))
  return {k: v for k, v in where.items() if getattr(model, k) != v}


def recognise(checkpoint, model=None):
  """Returns the `Format` of a `Checkpoint`, by its tensors' names.

  Args:
    checkpoint: `files.Checkpoint`.
    model: a `Backbone` that must have this layout; None for any.

  Raises:
    ValueError: if it is none that we know, or the model does not have it.
  """
  # The model's own first, where two families have similar names.
  mine = () if model is None else of(model)
  known = dict.fromkeys(
      [*mine, *(fmt for entry in _FAMILIES.values() for fmt in entry.formats),
       own.FORMAT])
  fmt = next((fmt for fmt in known if fmt.recognises(checkpoint.tensors)), None)
  if fmt is None:
    some = ', '.join(sorted(checkpoint.tensors)[:4]) or 'nothing'
    raise ValueError(
        f'{checkpoint.path} holds no model in a known layout ('
        f'{"; ".join(fmt.title for fmt in known)}); its first tensors: {some}')
  if model is not None and fmt not in mine:
    needs = ', '.join(f'{k}={getattr(model, k)!r} instead of {v!r}'
                      for k, v in _unfit(model).items())
    raise ValueError(
        f'{checkpoint.path} is in the {fmt.title} layout, which a '
        f'{type(model).__name__}{needs and f" with {needs}"} does not have: '
        f'give a file that weights.save wrote of such a model')
  return fmt
