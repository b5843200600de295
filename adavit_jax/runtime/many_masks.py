"""Runs many masks on the same images; what they have in common runs once.

Under a mask, the plan after the policy is a sequence of steps: the branches
that the mask keeps, and the bridges. Masks whose sequences begin alike share
these steps, so that the masks form a tree. It is walked depth first, small
subtrees before large ones: at most 2 + log2(masks) activations of the batch are
alive at a time, the argument and the result of a step included.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import passes
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import EVAL
from adavit_jax.runtime import branches
from adavit_jax.runtime import skipping
from adavit_jax.runtime import stopping

# MACs of one pass of a branch on a CPU, so that its activations stay in the
# cache: a third less time per image than in passes of 64 images (ViT-Ti).
_MACS_PER_PASS = 250_000_000


def run(model, params, x, masks, finish, *, images=None):
  """Runs the encoders after the policy under each of several masks.

  The results are those of the mode 'static', and each mask is run on the whole
  batch. The programs are compiled once for all masks.

  Args:
    model: a `Backbone`.
    params: groups, folded.
    x: z1, see `modes.before_policy`; may be sharded over devices.
    masks: concrete `Actions` of 0 and 1, [C, L1], [C, L2].
    finish: function of activations at the end of the plan. Only the tokens
      that the last exit reads are valid there. Returns a tree of arrays that
      is fetched: with several hosts, they must be replicated.
    images: [B, S, S, C], normalized; needed if `plan.rereads_images(model)`.

  Returns:
    The tree of `finish`, as NumPy arrays [C, ...].
  """
  results = {}
  def fetch(here, out):
    results.update(dict.fromkeys(here, jax.device_get(out)))

  running = []
  # The results of a mask are fetched while the devices run the next one.
  for here, last in _leaves(model, params, x, images, _sequences(model, masks)):
    running.append((here, finish(last)))
    if len(running) == 2:
      fetch(*running.pop(0))
    stopping.check()
  fetch(*running.pop())
  return jax.tree.map(
      lambda *rows: np.stack(rows), *map(results.get, range(len(masks.msa))))


def _leaves(model, params, x, images, sequences):
  """Yields (indices of equal sequences, activations at their end)."""
  waiting = [(x, 0, range(len(sequences)))]
  while waiting:
    x, done, here = waiting.pop()
    if done:
      x = _step(model, params, x, images, sequences[here[0]][done - 1])
    following, ends = collections.defaultdict(list), []
    for c in here:
      if done == len(sequences[c]):
        ends.append(c)
      else:
        following[sequences[c][done]].append(c)
    if ends:
      yield ends, x
    waiting += [(x, done + 1, group) for group in sorted(
        following.values(), key=len, reverse=True)]


def _sequences(model, masks):
  """Returns the steps under each mask, a list of tuples.

  A step is a tuple: (index of a bridge,), (index of a stack, branch, row of its
  parameters, tokens read afterwards or None for all), or, if its encoders have
  arrays of their own, (index of a stack, its actions, as many tokens, whether a
  later stack mixes tokens).
  """
  parts, sequences = _parts(model), []
  for msa, mlp in zip(*map(np.asarray, masks)):
    reads = branches.after_stacks(
        parts, Actions(msa, mlp), plan.read_last(model), np)
    steps = []
    for index, (part, after) in enumerate(zip(parts, reads)):
      if isinstance(part, Bridge):
        steps.append((index,))
      elif part.each or part.out:
        here, read, mixed = after
        steps.append((index, tuple(map(tuple, here)), read, bool(mixed)))
      else:
        steps += [(index, *step) for step in _stack_steps(part, *after)]
    sequences.append(tuple(steps))
  return sequences


def _stack_steps(stack, actions, read, mixed):
  """Yields (branch, row, tokens read afterwards) of what a stack keeps."""
  kept = branches.per_branch(stack, actions, np.ones(stack.length))
  later = branches.read_later(stack, [a > 0 for a in kept], read, mixed=mixed)
  for i in range(stack.length):
    for j, branch in enumerate(stack.branches):
      if kept[j][i]:
        narrow = branch.unread and not later[j][i]
        yield j, stack.start + i, read if narrow else None


@functools.lru_cache(maxsize=16)
def _parts(model):
  return plan.segment(model, model.num_fixed, plan.num_encoders(model))


def _step(model, params, x, images, step):
  """Returns the activations after a step, see `_sequences`."""
  index, *rest = step
  params = params['backbone']
  if not rest:
    return _bridge(model, index, params, x, images)
  params = params[_parts(model)[index].group]
  if isinstance(rest[0], tuple):
    actions, read, mixed = rest
    return _stack(model, index, read, mixed, params, x,
                  tuple(np.array(a, bool) for a in actions))
  branch, row, read = rest
  return _branch(model, index, branch, read, params, x, np.int32(row))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _bridge(model, index, params, x, images):
  return _parts(model)[index].run(params, x, images, EVAL)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _stack(model, index, read, mixed, params, x, actions):
  return skipping.cond_stack(
      _parts(model)[index], params, x, Actions(*actions), read, mixed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _branch(model, index, branch, read, params, x, row):
  branch = _parts(model)[index].branches[branch]
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], params)
  def run(x):
    return branches.after(branch, branches.first(x, read),
                          branches.delta(branch, params, x, read))
  return passes.on_cpu(run, x, max(1, _MACS_PER_PASS // max(1, branch.macs)))
