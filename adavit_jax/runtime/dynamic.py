"""The execution modes that decide at run time: `cond` and `compact`."""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax import cost
from adavit_jax.models.actions import Actions
from adavit_jax.models.encoder import branches
from adavit_jax.runtime import compact as compact_lib

# Even sizes of a last pass for prefix tokens alone: fewer, since rows in vain
# cost little there.
_PREFIX_SIZES = 2


def cond(model, params, x, actions, *, start=0, read=None):
  """Skips dropped branches at run time, one decision for the whole batch.

  Args:
    model: a `ViT`.
    params: its parameters.
    x: z1 [B, N, D].
    actions: `Actions` of [L], or [1, L] when B is 1.
    start: number of the first adaptive encoder, where actions are given for
      some encoders in a row.
    read: how many of the first tokens the caller reads; None for all.

  Returns:
    x [B, N, D]; only the first `read` tokens are finished.

  Raises:
    ValueError: if the actions are given per image and B is not 1.
  """
  if np.ndim(actions.msa) == 2:
    if not np.shape(actions.msa)[0] == x.shape[0] == 1:
      raise ValueError(f"mode='cond' takes one decision for the batch; got "
                       f"actions {np.shape(actions.msa)} for {x.shape[0]} "
                       f"images; use 'compact', or batches of 1")
    actions = Actions(*(a[0] for a in actions))
  msa, mlp = branches(model.encoder)
  def run(branch):
    # Sliced here, so that the weights of a dropped layer are not read.
    return lambda stack, x, i: compact_lib.add(
        x, branch(jax.tree.map(lambda leaf: leaf[i], stack), x))

  skip = lambda stack, x, i: x
  runs = [skip, run(msa)], [skip, run(mlp)]
  if read is not None:
    runs[0].append(run(lambda p, x: msa(p, x, read)))
    runs[1].append(run(lambda p, x: mlp(p, x[:, :read])))

  def step(x, layer):
    i, all_read, *keeps = layer
    for options, keep in zip(runs, keeps):
      which = jnp.where(keep, jnp.where(all_read, 1, 2), 0)
      x = jax.lax.switch(which, options, params['adaptive'], x, i)
    return x, None

  keeps = Actions(*(jnp.asarray(a, bool) for a in actions))
  all_read = keeps.read_later | (read is None)
  xs = (start + jnp.arange(len(all_read)), all_read, *keeps)
  return jax.lax.scan(step, x, xs)[0]


def compact(model, params, x, actions, *, chunk=None, start=0, read=None):
  """Runs each branch on the images that keep it, packed together.

  For inference: there is no reverse-mode gradient, since the number of passes
  is known at run time only. Train with `masked`.

  Args:
    model: a `ViT`.
    params: its parameters.
    x: z1 [B, N, D].
    actions: `Actions` of [B, L], or [L].
    chunk: images in one pass, but of MLP layers over prefix tokens alone; None
      chooses it for the default backend, also where the program is exported
      for another. See `compact.residual`.
    start: as in `cond`.
    read: as in `cond`.

  Returns:
    As `cond`.

  Raises:
    ValueError: for a chunk that is no number of images.
  """
  size, macs = x.shape[0], cost.vit(model)
  if chunk is not None and not (
      isinstance(chunk, numbers.Integral) and chunk >= 1):
    raise ValueError(f'chunk={chunk!r} must be a whole number of at least 1, '
                     f'or None')
  chunk = chunk or compact_lib.chunk_size(size, (macs.msa + macs.mlp) / 2)
  msa, mlp = branches(model.encoder)

  def step(x, layer):
    i, all_read, keep_msa, keep_mlp = layer  # but i, all [B]
    p = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], params['adaptive'])
    packed = compact_lib.residual
    run_msa, run_mlp = (functools.partial(f, p) for f in (msa, mlp))
    if read is None:
      x = packed(run_msa, x, keep_msa, chunk)
      return packed(run_mlp, x, keep_mlp, chunk), None
    # For all images or none: to pack those that are read and those that are
    # not apart takes longer than it saves.
    for_all = (keep_msa & all_read).any()
    x = packed(run_msa, x, keep_msa & for_all, chunk)
    x = packed(lambda x: run_msa(x, read), x, keep_msa & ~for_all, chunk,
               most=_PREFIX_SIZES)
    x = packed(run_mlp, x, keep_mlp & all_read, chunk)
    first = packed(run_mlp, x[:, :read], keep_mlp & ~all_read, size,
                   most=_PREFIX_SIZES)
    return jax.lax.dynamic_update_slice(x, first, (0, 0, 0)), None

  keeps = Actions(*(
      jnp.broadcast_to(a, (size, np.shape(a)[-1])).astype(bool)
      for a in actions))
  all_read = keeps.read_later | (read is None)
  xs = (start + jnp.arange(all_read.shape[-1]),
        *(a.T for a in (all_read, *keeps)))
  return jax.lax.scan(step, x, xs)[0]
