"""Operations on one branch that all execution modes share."""

import jax
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import EVAL


def delta(branch, params, x, read=None):
  """Returns what a branch adds to the first `read` tokens; None for all."""
  if read is not None and branch.local:
    x, read = first(x, read), None
  return branch.run(params, x, read if branch.unread else None, EVAL).x


def first(x, read):
  """Cuts activations to the first `read` tokens; None for all."""
  if read is None:
    return x
  return jax.tree.map(lambda a: a[:, :read], x)


def after(branch, x, y):
  """The activations after a branch: its output y, or y added to x."""
  return y if branch.replaces else add(x, y)


def add(x, y):
  """Adds y to the first tokens of x, or to some keys of a dict x."""
  if isinstance(x, dict):
    return {**x, **{key: add(x[key], part) for key, part in y.items()}}
  if y.shape[1:] == x.shape[1:]:
    return x + y
  return jax.lax.dynamic_update_slice(
      x, x[:, :y.shape[1]] + y, (0,) * x.ndim)


def read_later(stack, kept, read, xp=np, mixed=False):
  """Returns whether all tokens are read after each branch of a stack.

  If not, the branch may compute the first `read` tokens alone: only branches
  that mix tokens read the others. One that replaces the activations passes the
  first tokens on.

  Args:
    stack: `Stack` of R encoders with P branches.
    kept: for each branch [..., R] of bool, whether it runs.
    read: how many of the first tokens are read after the stack; None for all.
    xp: numpy or jax.numpy.
    mixed: [...] of bool, whether a later stack mixes tokens; see
      `after_stacks`.

  Returns:
    List of P arrays [..., R] of bool.
  """
  if read is None:
    return [xp.ones_like(k) for k in kept]
  mixes = xp.stack([k if _mixes(branch) else xp.zeros_like(k)
                    for branch, k in zip(stack.branches, kept)], -1)
  shape = mixes.shape  # [..., R, P]
  flat = mixes.reshape(*shape[:-2], -1).astype(np.int32)
  from_here = xp.cumsum(flat[..., ::-1], axis=-1)[..., ::-1]
  later = (from_here > flat).reshape(shape)
  later |= xp.asarray(mixed)[..., None, None]
  return [later[..., i] for i in range(shape[-1])]


def _mixes(branch):
  """Whether a branch reads all tokens to compute the first ones."""
  return not (branch.local or branch.replaces)


def after_stacks(parts, actions, read, xp=np):
  """Returns what is read after each stack of a segment.

  Args:
    parts: list of `Stack` and `Bridge`.
    actions: `Actions` of the segment.
    read: how many of the first tokens are read after the last part; None for
      all.
    xp: numpy or jax.numpy.

  Returns:
    List of (`Actions` of the part, read, mixed): how many of the first tokens
    are read after the stacks from here to the next bridge, and whether one of
    those behind this stack mixes tokens, so that all are read, [...] of bool.
    None for bridges.
  """
  found = []
  for part in parts:
    here = None
    if not isinstance(part, Bridge):
      here, actions = split(part, actions)
    found.append(here)
  shape = np.shape(actions.msa)[:-1]
  mixed = xp.zeros(shape, bool)
  for i in reversed(range(len(parts))):
    part, here = parts[i], found[i]
    if isinstance(part, Bridge):
      read, mixed, found[i] = part.read, xp.zeros(shape, bool), None
      continue
    found[i] = here, read, mixed
    kept = per_branch(part, here, xp.ones((*shape, part.length), bool))
    for branch, keep in zip(part.branches, kept):
      if _mixes(branch):
        mixed = mixed | xp.asarray(keep).astype(bool).any(-1)
  return found


def per_branch(stack, actions, always):
  """Splits the actions of a stack by branch.

  Args:
    stack: `Stack` of R encoders with P branches.
    actions: `Actions` [..., R * branches of the kind] of this stack.
    always: the value for a branch that always runs, [..., R].

  Returns:
    List of P arrays [..., R].
  """
  columns = {}
  for kind, a in zip(actions._fields, actions):
    num = sum(branch.kind == kind for branch in stack.branches)
    if num:
      a = a.reshape(*a.shape[:-1], stack.length, num)
      columns[kind] = iter([a[..., i] for i in range(num)])
  return [next(columns[branch.kind]) if branch.kind else always
          for branch in stack.branches]


def split(stack, actions):
  """Splits off the actions of a stack: (its `Actions`, the remaining ones)."""
  num = [n * stack.length for n in plan.num_branches(stack)]
  return (Actions(*(a[..., :n] for a, n in zip(actions, num))),
          Actions(*(a[..., n:] for a, n in zip(actions, num))))


def read_behind(parts, i, read):
  """Returns how many of the first tokens are read after a part of a segment.

  Args:
    parts: list of `Stack` and `Bridge`.
    i: index of the part.
    read: how many are read after the last part; None for all.
  """
  if i == len(parts) - 1:
    return read
  return parts[i + 1].read if isinstance(parts[i + 1], Bridge) else None
