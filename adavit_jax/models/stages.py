"""A model that can stop early, as a list of pure functions.

Such a model is a Flax module with `num_stages` and a method
`stage(images, carry, index, *, unroll, remat) -> (carry, logits)`; whoever
runs, calibrates or prices it needs no more. It knows nothing of confidence:
whether an image goes on is for the caller to say.
"""

import functools

import jax.numpy as jnp


def stages(model, *, unroll=1, remat=False):
  """The stages of a model, from the first to the last.

  Args:
    model: a module with `num_stages` and `stage`, for example a `RAViT`.
    unroll: encoders unrolled into one step of a scan.
    remat: recompute the encoders in the backward pass.

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
  scan = dict(unroll=unroll, remat=remat)
  return [functools.partial(_stage, model, i, scan)
          for i in range(model.num_stages)]


def _stage(model, index, scan, params, images, carry):
  return model.apply({'params': params}, images, carry, index, **scan,
                     method='stage')


def exit_logits(model, params, images, *, unroll=1, remat=False):
  """Runs every stage.

  Args:
    model: see `stages`.
    params: its parameters.
    images: [B, S, S, C], normalised.
    unroll: see `stages`.
    remat: see `stages`.

  Returns:
    [E, B, K] float32, the logits at every exit.
  """
  carry, logits = None, []
  for stage in stages(model, unroll=unroll, remat=remat):
    carry, y = stage(params, images, carry)
    logits.append(y)
  return jnp.stack(logits)
