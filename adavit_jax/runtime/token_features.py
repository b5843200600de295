"""Tokens inside a model, for those who use it as a backbone."""

from collections.abc import Iterable
import numbers

from adavit_jax.models import plan
from adavit_jax.models.params import fold
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes


def features(model, params, images, layers=None):
  """Returns the tokens after some encoders, with all layers.

  `models.plan.tokens_at(model, layer)` describes them: how many of the first
  tokens are class and distillation tokens (`prefix`), and the `grid` of the
  others, to which they may be reshaped. A last norm of the model is not
  applied. The function may be jitted, with `model` and `layers` static, and
  differentiated.

  Args:
    model: from `adavit_jax.create`.
    params: from `adavit_jax.init_params`, folded or not.
    images: [B, S, S, C], normalized.
    layers: numbers of encoders, from 0, the embedding, to L, in any order; None
      for L alone.

  Returns:
    Tuple with an array [B, N, D] for each of `layers`; N and D differ between
    the stages of a pyramid.

  Raises:
    ValueError: if a number is not in 0 to L, or the images do not have the
      model's shape.
  """
  last = plan.num_encoders(model)
  layers = (last,) if layers is None else layers
  if not isinstance(layers, Iterable):
    raise ValueError(f'layers={layers} must be several numbers, such as '
                     f'({layers},)')
  layers = tuple(layers)
  for layer in layers:
    if not (isinstance(layer, numbers.Integral) and 0 <= layer <= last):
      raise ValueError(f'layers={layers} must be numbers of encoders, from 0 '
                       f'to {last}')
  params = fold(model, params)
  x, start, found = modes.embed(model, params, images).x, 0, {}
  for layer in sorted({*layers}):
    x = masked.run(model, params, x, images, start=start, stop=layer,
                   inference=True).x
    start, found[layer] = layer, model.tokens(x, plan.tokens_at(model, layer))
  return tuple(found[layer] for layer in layers)
