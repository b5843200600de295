"""Execution modes: four ways to run the same encoders under given actions.

`masked` computes every branch and multiplies it by its gate, for training and
as the reference; `static` leaves dropped branches out of the program; `cond`
skips them at run time when one decision holds for the whole batch; `compact`
runs each branch on the images that keep it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import actions as actions_lib
from adavit_jax.models import inputs
from adavit_jax.models import passes
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import EVAL
from adavit_jax.models.params import fold
from adavit_jax.runtime import masked
from adavit_jax.runtime import skipping

MODES = ('masked', 'static', 'cond', 'compact')

# MACs of one pass of the embedding on a CPU: few, so that the activations of
# its convolutions, the largest of all, stay in the cache.
_MACS_PER_PASS = 250_000_000


def embed(model, params, images, ctx=EVAL):
  """Embeds images: the input of the plan.

  Args:
    model: a `Backbone`.
    params: groups.
    images: [B, S, S, C], normalized.
    ctx: `Context`; in training with `stats` of the whole backbone.

  Returns:
    `masked.Result`.

  Raises:
    ValueError: if the images do not have the model's shape.
  """
  inputs.check_normalized(model, images)
  ctx = masked.fold_key(ctx, 'embed')
  if ctx.stats is None:
    return masked.Result(passes.on_cpu(
        lambda images: model.embed(params['backbone'], images, ctx)[0], images,
        max(1, _MACS_PER_PASS // max(1, model.embed_macs))), None, None)
  x, changed = model.embed(params['backbone'], images, ctx)
  return masked.Result(x, masked.merged(ctx.stats, changed), None)


def before_policy(model, params, images):
  """Runs the embedding and the M fixed encoders (equation 1).

  Args:
    model: a `Backbone`.
    params: groups, folded.
    images: [B, S, S, C], normalized.

  Returns:
    z1, the activations where the policy decides: [B, N, D], or a dict.
  """
  x = embed(model, params, images).x
  return masked.run(model, params, x, images, stop=model.num_fixed,
                    inference=True).x


def after_policy(model, params, x, actions, mode, *, images=None, chunk=None):
  """Runs the encoders after the policy and the last exit (equation 2).

  Args:
    model: a `Backbone`.
    params: groups, folded.
    x: z1, see `before_policy`.
    actions: `Actions` of 0 and 1, [L1], [L2] or [B, L1], [B, L2], depending on
      the mode; array-likes are accepted.
    mode: 'masked', 'static', 'cond' or 'compact'.
    images: [B, S, S, C], normalized; needed if `plan.rereads_images(model)`.
    chunk: for 'compact' only, see `skipping.run`.

  Returns:
    `Logits`.

  Raises:
    ValueError: for an unknown mode, images=None where they are needed, or
      invalid actions or chunk, see `actions.checked` and `skipping.run`.
  """
  _check_mode(mode)
  actions = actions_lib.checked(actions, batch_of(x), plan.num_layers(model),
                                gates=mode == 'masked')
  if images is None and plan.rereads_images(model):
    raise ValueError('images=None, but a bridge after the policy reads the '
                     'images again; give the images that x was computed from')
  start = model.num_fixed
  if mode == 'masked':
    x = masked.run(model, params, x, images, actions, start=start).x
  else:
    x = skipping.run(model, params, x, images, actions, mode, start=start,
                     read=plan.read_last(model), chunk=chunk)
  return classify(model, params, x)


def _check_mode(mode):
  if mode not in MODES:
    raise ValueError(f'unknown mode {mode!r}; known: {sorted(MODES)}')


def batch_of(x):
  """Returns B, the batch size of activations."""
  return jax.tree.leaves(x)[0].shape[0]


def without_layers(model, params, x, images=None):
  """Returns `Logits` of z1 with every layer dropped that may be dropped."""
  none = Actions(*map(np.zeros, plan.num_layers(model)))
  return after_policy(model, params, x, none, 'static', images=images)


def classify(model, params, x):
  """Applies the last exit to the activations at the end of the plan: `Logits`.
  """
  return model.classify(params['backbone'], x, len(model.own_exits()) - 1,
                        EVAL)[0]


def dense(model, params, images):
  """Classifies images with all layers: `Logits` [B, K]."""
  x = embed(model, params, images).x
  x = masked.run(model, params, x, images, read=plan.read_last(model),
                 inference=True).x
  return classify(model, params, x)


def forward(model, params, images, actions=None, *, mode='masked'):
  """Classifies images under given actions, in any of the modes.

  Args:
    model: from `adavit_jax.create`; its added exits are not run.
    params: from `adavit_jax.init_params`, folded or not.
    images: [B, S, S, C], normalized.
    actions: `Actions`; None runs all layers, with the same program in every
      mode.
    mode: see `after_policy`.

  Returns:
    `Logits`.

  Raises:
    ValueError: if the images do not have the model's shape, or as
      `after_policy`.
  """
  _check_mode(mode)
  params = fold(model, params)
  if actions is None:
    return dense(model, params, images)
  part = model
  if mode == 'cond':
    # One loop over all encoders holds the weights of one branch at a time; one
    # over those that always run would hold the weights of a whole encoder.
    part = model.clone(num_fixed=0)
  z1 = before_policy(part, params, images)
  if mode == 'cond':
    actions = _with_fixed(model, actions, batch_of(z1))
  return after_policy(part, params, z1, actions, mode, images=images)


def _with_fixed(model, actions, batch_size):
  """Actions of all layers, ones for those before the policy."""
  actions = actions_lib.checked(actions, batch_size, plan.num_layers(model),
                                gates=False)
  fixed = plan.num_layers(model, 0, model.num_fixed)
  return Actions(*(
      jnp.concatenate([jnp.ones((*a.shape[:-1], num), a.dtype), a], axis=-1)
      for a, num in zip(actions, fixed)))
