"""A model as a list of stages, one for each exit.

A stage is a pure function `(params, images, carry) -> (carry, logits)`; a plain
model has one. Stages do not compute confidence: the caller decides whether an
image continues.
"""

import functools

import jax
import jax.numpy as jnp

from adavit_jax.models import params as params_lib
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.runtime import branches
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes
from adavit_jax.runtime import skipping


def stages(model, *, decide=None, actions=None, mode=None, inference=True,
           at_exit=params_lib.exit_logits, **options):
  """Returns the stages of a model, from the first to the last.

  With a policy, one stage reaches the place where the policy decides and runs
  it; from there on, the layers that the actions keep are run. An image that
  leaves early saves the layers after its exit and those dropped before it.

  Args:
    model: a `Backbone`.
    decide: (params, z1, images) -> `Actions` [B, L1], [B, L2]; None runs all
      layers, or those of `actions`.
    actions: concrete `Actions` [L1], [L2] for every image; at inference the
      dropped layers are absent from the stages.
    mode: 'masked', 'cond' or 'compact', see `modes`; None for 'cond' on one
      image and 'compact' on more.
    inference: skip tokens that are not read; 'masked' computes all tokens after
      a policy.
    at_exit: what a stage returns in place of the logits, for example
      `params.exit_reading`; called as `params.exit_logits`.
    **options: unroll and remat, see `masked.run`.

  Returns:
    E functions. params are folded groups, with those that `decide` reads;
    images are [B, S, S, C] in the model's size for every stage; the carry is a
    pytree of arrays with a leading batch axis, None before the first stage,
    whose structure may differ between stages; logits are [B, K] float32. Row i
    of the results depends only on row i of the arguments.

  Raises:
    ValueError: for an unknown mode.
  """
  if mode not in (None, 'masked', 'cond', 'compact'):
    raise ValueError(f"unknown mode {mode!r}; known: ['compact', 'cond', "
                     f"'masked']")
  options = dict(options, inference=inference)
  run = functools.partial(_stage, model, decide, mode, at_exit, options)
  if actions is not None:
    run = functools.partial(_static_stage, model, actions, at_exit, options)
  return [functools.partial(run, e, *span)
          for e, span in zip(plan.exits(model), plan.spans(model))]


def _static_stage(
    model, actions, at_exit, options, e, start, stop, params, images, x):
  if x is None:
    x = modes.embed(model, params, images).x
  inference = options['inference']
  middle = min(max(start, model.num_fixed), stop)
  read = plan.read_at(model, stop) if inference else None
  if start < middle:
    x = masked.run(model, params, x, images, start=start, stop=middle,
                   read=read if middle == stop else None, **options).x
  if middle < stop:
    here = plan.cut(model, actions, middle, stop)
    if inference:
      x = skipping.run(model, params, x, images, here, 'static', start=middle,
                       stop=stop, read=read)
    else:
      x = masked.run(model, params, x, images, here, start=middle, stop=stop,
                     **options).x
  logits, _ = at_exit(model, params, x, e)
  return plan.handed_on(model, x, e), logits


def _stage(
    model, decide, mode, at_exit, options, e, start, stop, params, images,
    carry):
  actions = None
  if carry is None:
    x = modes.embed(model, params, images).x
  elif decide is not None and start > model.num_fixed:
    x, actions = carry
    actions = Actions(*actions)
  else:
    x = carry
  decides = decide is not None and stop > model.num_fixed
  # The policy reads all tokens, even if it only decides in the next stage.
  decides_next = decide is not None and stop == model.num_fixed
  if not decides:
    skips_tokens = options['inference'] and not decides_next
    x = masked.run(
        model, params, x, images, start=start, stop=stop, **options,
        read=plan.read_at(model, stop) if skips_tokens else None).x
  else:
    if start <= model.num_fixed:
      x = masked.run(model, params, x, images, start=start,
                     stop=model.num_fixed, inference=True).x
      actions, start = decide(params, x, images), model.num_fixed
    x = _after_policy(
        model, mode, options, params, x, images, actions, start, stop)
  logits, _ = at_exit(model, params, x, e)
  if not decides_next:
    x = plan.handed_on(model, x, e)
  return ((x, tuple(actions)) if decides else x), logits


def _after_policy(
    model, mode, options, params, x, images, actions, start, stop):
  here = plan.cut(model, actions, start, stop)
  if mode == 'masked':
    return masked.run(model, params, x, images, here, start=start, stop=stop,
                      **dict(options, inference=False)).x
  mode = mode or ('cond' if modes.batch_of(x) == 1 else 'compact')
  read = plan.read_at(model, stop)
  x = skipping.run(model, params, x, images, here, mode, start=start, stop=stop,
                   read=read)
  return branches.first(x, read)


def training(model, params, images, ctx, *, num=None, detach=False, **options):
  """Runs the stages with all layers, for training.

  Args:
    model: a `Backbone`.
    params: groups.
    images: [B, S, S, C], normalized.
    ctx: `Context` with the statistics of the whole backbone, if any.
    num: how many stages to run; None for all.
    detach: train only the last of them: earlier stages and their batch
      statistics are frozen.
    **options: unroll and remat, see `masked.run`.

  Returns:
    (list of logits [B, K] at the exits, batch statistics).
  """
  chosen = list(zip(plan.exits(model), plan.spans(model)))[:num]
  learns = lambda i: ctx._replace(
      train=ctx.train and not (detach and i + 1 < len(chosen)))
  exits, result = [], modes.embed(model, params, images, learns(0))
  for i, (e, (start, stop)) in enumerate(chosen):
    here = learns(i)
    x = jax.lax.stop_gradient(result.x) if detach and i else result.x
    result = masked.run(
        model, params, x, images, start=start, stop=stop,
        ctx=here._replace(stats=result.stats), **options)
    here = masked.fold_key(here, f'exit_{i}')._replace(stats=result.stats)
    logits, changed = params_lib.exit_logits(model, params, result.x, e, here)
    result = result._replace(stats=masked.merged(result.stats, changed))
    exits.append(logits)
  return exits, result.stats


def exit_logits(model, params, images):
  """Runs every stage on all images: [E, B, K] float32 logits of all exits."""
  params = params_lib.fold(model, params)
  carry, logits = None, []
  for stage in stages(model):
    carry, y = stage(params, images, carry)
    logits.append(y)
  return jnp.stack(logits)
