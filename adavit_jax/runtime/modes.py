"""Execution modes: four ways to run the same encoders under given actions.

`masked` computes every branch and multiplies, for training and as the oracle;
`static` leaves dropped branches out of the program; `cond` skips them at run
time when one decision holds for the whole batch; `compact` runs each branch on
the images that keep it.

The heads read the prefix tokens alone. So the last MSA layer that an image
keeps needs no other queries, and the MLP layers from there on no other tokens:
all modes but `masked` leave them out, `compact` the queries only where no image
of the batch needs them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import actions as actions_lib
from adavit_jax.models.encoder import branches
from adavit_jax.runtime.dynamic import compact
from adavit_jax.runtime.dynamic import cond


def fixed(model, params, images):
  """Runs the stem and the M fixed encoders (equation 1).

  Args:
    model: a `ViT`.
    params: its parameters.
    images: [B, S, S, C], normalised.

  Returns:
    z1 [B, N, D].
  """
  x = model.apply({'params': params}, images, method='embed')
  msa, mlp = branches(model.encoder)
  for i in range(model.num_fixed):
    p = jax.tree.map(lambda leaf: leaf[i], params['fixed'])
    x = x + msa(p, x)
    x = x + mlp(p, x)
  return x


def segment(model, params, start, stop):
  """The adaptive encoders start to stop alone, as `masked` takes them.

  Args:
    model: a `ViT`.
    params: its parameters.
    start: number of the first, from 0 over the adaptive encoders.
    stop: one past the last.

  Returns:
    (a `ViT` with stop - start adaptive encoders, its parameters); tokens go
    into the first of them instead of z1.
  """
  part = model.clone(depth=model.num_fixed + stop - start)
  adaptive = jax.tree.map(lambda leaf: leaf[start:stop], params['adaptive'])
  return part, {**params, 'adaptive': adaptive}


def masked(model, params, x, gates, *, unroll=1, remat=False):
  """Runs every adaptive branch and scales its output by a gate.

  Args:
    model: a `ViT`.
    params: its parameters.
    x: z1 [B, N, D].
    gates: `Actions` of [B, L] or [L]; 0/1 for actions, any float for
      stochastic depth (0 or 1 / survival probability).
    unroll: encoders unrolled into one step of the scan.
    remat: recompute the branches in the backward pass.

  Returns:
    (x [B, N, D], prefix tokens after each adaptive encoder [L, B, P, D]).
  """
  msa, mlp = branches(model.encoder)
  layers = lambda a: jnp.broadcast_to(
      a, (x.shape[0], model.num_adaptive)).T[..., None, None].astype(x.dtype)

  def step(x, layer):
    p, keep_msa, keep_mlp = layer  # keep_*: [B, 1, 1]
    x = x + keep_msa * msa(p, x)
    x = x + keep_mlp * mlp(p, x)
    return x, x[:, :model.num_prefix]

  step = jax.checkpoint(step) if remat else step
  xs = (params['adaptive'], layers(gates.msa), layers(gates.mlp))
  return jax.lax.scan(step, x, xs, unroll=unroll)


def static(model, params, x, actions):
  """Runs the branches that are kept; the others are absent from the program.

  Args:
    model: a `ViT`.
    params: its parameters.
    x: z1 [B, N, D].
    actions: `Actions` of [L], concrete when the program is traced.

  Returns:
    Prefix tokens [B, P, D].

  Raises:
    ValueError: if the actions are traced, or differ between images.
  """
  if any(isinstance(a, jax.core.Tracer) or np.ndim(a) != 1 for a in actions):
    raise ValueError("mode='static' takes concrete actions of shape [L]; use "
                     "'cond' for a traced decision, 'masked' for one per image")
  actions = actions_lib.Actions(*map(np.asarray, actions))
  msa, mlp = branches(model.encoder)
  for i, read_later in enumerate(actions.read_later):
    p = jax.tree.map(lambda leaf: leaf[i], params['adaptive'])
    read = None if read_later else model.num_prefix
    if actions.msa[i]:
      x = x[:, :read] + msa(p, x, read)
    if actions.mlp[i]:
      x = x[:, :read]
      x = x + mlp(p, x)
  return x[:, :model.num_prefix]


def adaptive(model, params, x, actions, mode, *, chunk=None):
  """Runs the adaptive encoders and the heads (equation 2).

  Args:
    model: a `ViT`.
    params: its parameters.
    x: z1 [B, N, D].
    actions: `Actions` of 0 and 1, [L] or [B, L] as the mode takes them; lists
      will do.
    mode: 'masked', 'static', 'cond' or 'compact'.
    chunk: as `compact` takes it; the other modes have none.

  Returns:
    `Logits`.

  Raises:
    ValueError: for an unknown mode, or as `actions.checked`.
  """
  if mode not in MODES:
    raise ValueError(f'unknown mode {mode!r}; known: {sorted(MODES)}')
  actions = actions_lib.checked(
      actions, x.shape[0], model.num_adaptive, gates=mode == 'masked')
  options = dict(chunk=chunk) if mode == 'compact' else {}
  if mode in ('cond', 'compact'):
    options['read'] = model.num_prefix
  return classify(model, params,
                  MODES[mode](model, params, x, actions, **options))


def classify(model, params, x):
  """The heads on an encoder's output: tokens [B, N, D] to `Logits` [B, K]."""
  prefix = x[:, :model.num_prefix]
  return model.apply({'params': params}, prefix, method='classify')


def forward(model, params, images, actions, *, mode='masked'):
  """Classifies images under given actions; see `fixed` and `adaptive`.

  Raises:
    ValueError: for a model with exits, or as `fixed` and `adaptive`.
  """
  if hasattr(model, 'num_stages'):
    raise ValueError(f'{type(model).__name__} has exits; run it as model.apply('
                     f"{{'params': params}}, images), or stage by stage")
  z1 = fixed(model, params, images)
  return adaptive(model, params, z1, actions, mode)


def _masked_tokens(model, params, x, actions):
  return masked(model, params, x, actions)[0]


MODES = {'masked': _masked_tokens, 'static': static, 'cond': cond,
         'compact': compact}
