"""A model that can stop early, as a list of pure functions.

Such a model is a Flax module with `num_stages` and a method
`stage(images, carry, index, **options) -> (carry, logits)`; whoever runs,
calibrates or prices it needs no more. It knows nothing of confidence:
whether an image goes on is for the caller to say.
"""

import functools

import jax.numpy as jnp


def stages(model, **options):
  """The stages of a model, from the first to the last.

  Args:
    model: a module with `num_stages` and `stage`, a `RAViT` or `MultiExit`.
    **options: how its encoders run: unroll, remat, inference, see the
      model's `stage`.

  Returns:
    E functions `(params, images, carry) -> (carry, logits)`: images
    [B, S, S, C] in the model's size whatever the stage; the carry a pytree of
    arrays with a leading batch axis, None before the first stage, whose
    structure may differ from stage to stage; logits [B, K] float32. Row i of
    the results depends on row i of the arguments alone.

  Raises:
    ValueError: if the model cannot stop early.
  """
  if not hasattr(model, 'num_stages'):
    raise ValueError(f'{type(model).__name__} has no stages: it cannot stop '
                     f'early; use a model with exits, such as RAViT')
  return [functools.partial(_stage, model, i, options)
          for i in range(model.num_stages)]


def _stage(model, index, options, params, images, carry):
  return model.apply({'params': params}, images, carry, index, **options,
                     method='stage')


def exit_logits(model, params, images, **options):
  """Runs every stage.

  Args:
    model: see `stages`.
    params: its parameters.
    images: [B, S, S, C], normalised.
    **options: see `stages`.

  Returns:
    [E, B, K] float32, the logits at every exit.
  """
  carry, logits = None, []
  for stage in stages(model, **options):
    carry, y = stage(params, images, carry)
    logits.append(y)
  return jnp.stack(logits)
