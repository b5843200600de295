"""The modes that skip dropped layers: `static`, `cond` and `compact`.

If only the prefix tokens are read after the last MSA layer that an image keeps,
this layer needs no other queries, and the MLP layers after it need no other
tokens. All three modes skip them; `compact` skips the queries only if no image
of the batch needs them.
"""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models import stack_rows
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import EVAL
from adavit_jax.runtime import branches
from adavit_jax.runtime import compact as compact_lib

# Number of sizes of a last pass over prefix tokens alone; few, since padded
# rows cost little there.
_PREFIX_SIZES = 2


def run(model, params, x, images, actions, mode, *, start, stop=None, read=None,
        chunk=None):
  """Runs the encoders between two places under given actions.

  Args:
    model: a `Backbone`.
    params: groups, folded.
    x: activations at `start`, which is not before the place where the policy
      decides.
    images: [B, S, S, C], normalized; for bridges that read the images again.
    actions: `Actions` for these places: [...] in 'static' and 'cond', [B, ...]
      in 'compact', [1, ...] in 'cond' when B is 1.
    mode: 'static', 'cond' or 'compact'.
    start: place to begin at.
    stop: place to end at; None for the end of the plan.
    read: how many of the first tokens the caller reads; None for all.
    chunk: images in one pass of 'compact', except for branches over prefix
      tokens alone; None chooses it for the default backend, also if the program
      is exported for another backend. See `compact.residual`.

  Returns:
    Activations; only the first `read` tokens are valid, and 'static' returns
    these alone.

  Raises:
    ValueError: if the mode does not accept the actions, or chunk is not a
      positive integer.
  """
  stop = plan.num_encoders(model) if stop is None else stop
  actions = _CHECKS[mode](actions, jax.tree.leaves(x)[0].shape[0], chunk)
  stack_fn = _STACKS[mode]
  if mode == 'compact':
    stack_fn = functools.partial(stack_fn, chunk=chunk)
  parts = plan.segment(model, start, stop)
  reads = branches.after_stacks(
      parts, actions, read, np if mode == 'static' else jnp)
  for part, after in zip(parts, reads):
    if isinstance(part, Bridge):
      x, _ = part.run(params['backbone'], x, images, EVAL)
    else:
      x = stack_fn(part, params['backbone'][part.group], x, *after)
  return x


def _static_actions(actions, size, chunk):
  del size, chunk
  if any(isinstance(a, jax.core.Tracer) or np.ndim(a) != 1 for a in actions):
    raise ValueError("mode='static' takes concrete actions of shape [L]; use "
                     "'cond' for traced actions, 'masked' for one row per "
                     "image")
  return Actions(*map(np.asarray, actions))


def _cond_actions(actions, size, chunk):
  del chunk
  if np.ndim(actions.msa) == 2:
    if not np.shape(actions.msa)[0] == size == 1:
      raise ValueError(f"mode='cond' takes one decision for the batch, not "
                       f"actions of shape {np.shape(actions.msa)} for {size} "
                       f"images; use 'compact', or batches of 1")
    actions = Actions(*(a[0] for a in actions))
  return Actions(*(jnp.asarray(a, bool) for a in actions))


def _compact_actions(actions, size, chunk):
  if chunk is not None and not (
      isinstance(chunk, numbers.Integral) and chunk >= 1):
    raise ValueError(f'chunk={chunk!r} is not a positive integer or None')
  return Actions(*(
      jnp.broadcast_to(a, (size, np.shape(a)[-1])).astype(bool)
      for a in actions))


def _static(stack, params, x, actions, read, mixed):
  kept = branches.per_branch(stack, actions, np.ones(stack.length))
  later = branches.read_later(
      stack, [a > 0 for a in kept], read, mixed=mixed)
  before, outputs = x, []
  x, each = stack_rows.split(stack, x)
  for i in range(stack.length):
    p = jax.tree.map(lambda leaf: leaf[stack.start + i], params)
    x = stack_rows.enter(stack, x, jax.tree.map(lambda a: a[i], each))
    for branch, keep, all_read in zip(stack.branches, kept, later):
      if keep[i]:
        this = read if branch.unread and not all_read[i] else None
        y = branches.delta(branch, p, x, this)
        x = branches.after(branch, branches.first(x, this), y)
    x, output = stack_rows.leave(stack, x)
    outputs.append(output)
  outputs = jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)
  x = stack_rows.join(stack, before, x, outputs)
  return x if mixed else branches.first(x, read)


def cond_stack(stack, params, x, actions, read, mixed):
  """Runs one stack in the mode 'cond'.

  Args:
    stack: `Stack`.
    params: its group.
    x: activations before it.
    actions: `Actions` of the stack, [...] of bool.
    read: see `branches.after_stacks`, as `mixed`.
    mixed: [] of bool.

  Returns:
    Activations after it.
  """
  def option(branch, read):
    # Sliced here, so that the weights of a dropped layer are not read.
    return lambda params, x, i: branches.after(branch, x, branches.delta(
        branch, stack_rows.row(params, i), x, read))

  skip = lambda params, x, i: x
  def step(x, layer):
    i, keeps, later, row = layer
    x = stack_rows.enter(stack, x, row)
    for branch, keep, all_read in zip(stack.branches, keeps, later):
      options = [skip, option(branch, None)]
      which = jnp.asarray(keep, np.int32)
      if read is not None and branch.unread:
        options.append(option(branch, read))
        which = jnp.where(keep, jnp.where(all_read, 1, 2), 0)
      if branch.kind:
        x = jax.lax.switch(which, options, params, x, i)
      else:
        x = options[1](params, x, i)
    return stack_rows.leave(stack, x)

  always = jnp.ones(stack.length, bool)
  kept = branches.per_branch(stack, actions, always)
  later = branches.read_later(stack, kept, read, jnp, mixed)
  rows = stack.start + jnp.arange(stack.length)
  shared, each = stack_rows.split(stack, x)
  return stack_rows.join(stack, x, *stack_rows.scan(
      step, shared, (rows, kept, later, each)))


def _compact(stack, params, x, actions, read, mixed, chunk):
  size = jax.tree.leaves(x)[0].shape[0]
  macs = [branch.macs for branch in stack.branches if branch.kind]
  chunk = chunk or compact_lib.chunk_size(size, np.mean(macs or [1]))
  packed = compact_lib.residual

  def step(x, layer):
    i, keeps, later, row = layer  # keeps, later: [B] for each branch
    x = stack_rows.enter(stack, x, row)
    p = stack_rows.row(params, i)
    for branch, keep, all_read in zip(stack.branches, keeps, later):
      run_all = functools.partial(branches.delta, branch, p)
      if not branch.kind:
        x = branches.after(branch, x, run_all(x))
      elif read is None or not branch.unread:
        x = packed(run_all, x, keep, chunk)
      elif branch.local:
        x = packed(run_all, x, keep & all_read, chunk)
        first = packed(run_all, branches.first(x, read), keep & ~all_read, size,
                       most=_PREFIX_SIZES)
        x = jax.tree.map(lambda a, part: jax.lax.dynamic_update_slice(
            a, part, (0,) * a.ndim), x, first)
      else:
        # One choice for all images: to pack the images that need all queries
        # separately takes longer than it saves.
        for_all = (keep & all_read).any()
        x = packed(run_all, x, keep & for_all, chunk)
        x = packed(functools.partial(run_all, read=read), x, keep & ~for_all,
                   chunk, most=_PREFIX_SIZES)
    return stack_rows.leave(stack, x)

  kept = branches.per_branch(
      stack, actions, jnp.ones((size, stack.length), bool))
  later = branches.read_later(stack, kept, read, jnp, mixed)
  rows = stack.start + jnp.arange(stack.length)
  columns = [[a.T for a in kept], [a.T for a in later]]
  shared, each = stack_rows.split(stack, x)
  return stack_rows.join(stack, x, *stack_rows.scan(
      step, shared, (rows, *columns, each)))


_CHECKS = {'static': _static_actions, 'cond': _cond_actions,
           'compact': _compact_actions}
_STACKS = {'static': _static, 'cond': cond_stack, 'compact': _compact}
