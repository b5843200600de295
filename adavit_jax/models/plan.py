"""Queries on the plan of a backbone: places, droppable layers, exits.

Encoders are numbered from 0 in the order of the plan. A place is a position in
the plan, given as the number of encoders before it. A bridge belongs to the
encoder that follows it.
"""

import functools
from typing import NamedTuple

import numpy as np

from adavit_jax.models import exit_heads
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Bridge
from adavit_jax.models.backbone import KINDS
from adavit_jax.models.backbone import Stack


class Exit(NamedTuple):
  """An exit of a model: an added one or one of the backbone's own.

  Attributes:
    place: number of encoders before it.
    head: name of an added head; '' for an own exit.
    index: index among the added exits or among the own exits.
  """
  place: int
  head: str
  index: int


@functools.lru_cache(maxsize=256)
def _items(model):
  """[(item, first encoder)] of the plan; for a bridge, the encoder after it."""
  items, first = [], 0
  for item in model.plan():
    items.append((item, first))
    if isinstance(item, Stack):
      first += item.length
  return items


def num_encoders(model):
  """Number of encoders in the plan."""
  return sum(item.length for item, _ in _items(model)
             if isinstance(item, Stack))


def segment(model, start, stop):
  """The part of a plan between two places.

  Args:
    model: a `Backbone`.
    start: first place.
    stop: last place; at the end of the plan, includes a bridge after the last
      encoder.

  Returns:
    List of `Bridge`s and `Stack`s, cut to the encoders start to stop.
  """
  parts, last = [], num_encoders(model)
  for item, first in _items(model):
    if isinstance(item, Bridge):
      # A bridge after the last encoder belongs to that encoder.
      if start <= first < stop or first == last == stop:
        parts.append(item)
    else:
      low, high = max(start, first), min(stop, first + item.length)
      if low < high:
        parts.append(item._replace(
            start=item.start + low - first, length=high - low))
  return parts


def tokens_at(model, place):
  """`Tokens` at a place."""
  for item, first in _items(model):
    if isinstance(item, Stack) and place <= first + item.length:
      return item.at if place else item.before or item.at
  raise ValueError(f'place={place} is not in a plan of {num_encoders(model)} '
                   f'encoders')


def read_at(model, place):
  """Number of leading tokens that are read at a place; None for all.

  They are read by the exits at the place and by the next item of the plan.
  """
  reads = [_own_exit(model, e).read if not e.head else None
           for e in exits(model) if e.place == place]
  if place < num_encoders(model):
    following = segment(model, place, place + 1)[0]
    reads.append(following.read if isinstance(following, Bridge) else None)
  return None if None in reads else max(reads)


def handed_on(model, x, e):
  """Returns the part of activations that is read after an exit.

  Args:
    model: a `Backbone`.
    x: activations at the place of the exit.
    e: `Exit`, which has read them.
  """
  at_place = [other for other in exits(model) if other.place == e.place]
  if e != at_place[-1]:
    return x
  if e.place == num_encoders(model):
    # Nothing reads it, and the rows of a dict would take memory as results.
    return {} if isinstance(x, dict) else x
  following = segment(model, e.place, e.place + 1)[0]
  if not isinstance(following, Bridge) or not following.keys:
    return x
  return {key: x[key] for key in following.keys}


def read_last(model):
  """Number of leading tokens that the last own exit reads; None for all."""
  return model.own_exits()[-1].read


def _own_exit(model, e):
  return model.own_exits()[e.index]


def exits(model):
  """List of all `Exit`s, sorted by place; at a place, own exits come last."""
  added = [Exit(place, head, i) for i, (place, head) in enumerate(model.exits)]
  own_exits = [Exit(e.place, '', i) for i, e in enumerate(model.own_exits())]
  return sorted([*added, *own_exits], key=lambda e: (e.place, not e.head))


def spans(model):
  """[(start, stop)] places of the stages, each from one exit to the next."""
  ends = [e.place for e in exits(model)]
  return list(zip([0, *ends], ends))


def stage_of(model, place):
  """Index of the stage that runs the encoder after a place."""
  return next(i for i, (_, stop) in enumerate(spans(model)) if place < stop)


def num_branches(stack):
  """Number of droppable branches in one encoder, `Actions` of ints."""
  kinds = [branch.kind for branch in stack.branches]
  return Actions(kinds.count('msa'), kinds.count('mlp'))


def num_layers(model, start=None, stop=None):
  """Number of droppable layers between two places, `Actions` (L1, L2) of ints.

  Args:
    model: a `Backbone`.
    start: first place; None for the place of the policy.
    stop: last place; None for the end of the plan.
  """
  start = model.num_fixed if start is None else start
  stop = num_encoders(model) if stop is None else stop
  msa = mlp = 0
  for part in segment(model, start, stop):
    if isinstance(part, Stack):
      per_encoder = num_branches(part)
      msa += per_encoder.msa * part.length
      mlp += per_encoder.mlp * part.length
  return Actions(msa, mlp)


def cut(model, actions, start, stop):
  """Selects the actions, from [..., L1], [..., L2], of places start to stop."""
  before = num_layers(model, None, start)
  here = num_layers(model, start, stop)
  return Actions(*(a[..., skip:skip + num]
                   for a, skip, num in zip(actions, before, here)))


def layer_macs(model):
  """MACs of each droppable layer, `Actions` of ints [L1], [L2]."""
  macs = Actions([], [])
  for part in segment(model, model.num_fixed, num_encoders(model)):
    if isinstance(part, Stack):
      for kind, numbers in zip(Actions._fields, macs):
        each = [b.macs for b in part.branches if b.kind == kind]
        numbers.extend(each * part.length)
  return Actions(*(np.array(numbers, np.int64) for numbers in macs))


def layer_encoders(model):
  """Encoder index of each droppable layer, `Actions` of ints [L1], [L2]."""
  encoders, place = Actions([], []), model.num_fixed
  for part in segment(model, model.num_fixed, num_encoders(model)):
    if isinstance(part, Stack):
      for numbers, num in zip(encoders, num_branches(part)):
        numbers.extend(place + i for i in range(part.length)
                       for _ in range(num))
      place += part.length
  return Actions(*(np.array(numbers, int) for numbers in encoders))


def layer_stages(model):
  """Stage index of each droppable layer, `Actions` of ints [L1], [L2]."""
  stages = Actions([], [])
  for i, (start, stop) in enumerate(spans(model)):
    start = max(start, model.num_fixed)
    if start < stop:
      for numbers, num in zip(stages, num_layers(model, start, stop)):
        numbers.extend([i] * num)
  return Actions(*(np.array(numbers, int) for numbers in stages))


def segment_macs(model, start, stop):
  """MACs of one image between two places, with all layers."""
  return sum(
      part.macs if isinstance(part, Bridge)
      else part.length * sum(b.macs for b in part.branches)
      for part in segment(model, start, stop))


def rereads_images(model):
  """Whether a bridge after the policy reads the images."""
  return any(isinstance(part, Bridge) and part.reads_images for part in
             segment(model, model.num_fixed, num_encoders(model)))


def groups(model):
  """Names of the parameter groups with a leading axis of encoders."""
  return frozenset(item.group for item, _ in _items(model)
                   if isinstance(item, Stack))


def owners(model):
  """The stage that each of the backbone's parameter groups belongs to.

  Returns:
    {name: stage index, or for stacks a list with the stage index of each row}.
    Names that are missing belong to the embedding, stage 0. Parameters used by
    several stages belong to the first.
  """
  owner = {}
  for i, e in enumerate(exits(model)):
    if not e.head:
      for name in _own_exit(model, e).params:
        owner.setdefault(name, i)
  for item, first in _items(model):
    if isinstance(item, Bridge):
      stage = stage_of(model, min(first, num_encoders(model) - 1))
      for name in item.params:
        owner[name] = min(stage, owner.get(name, stage))
    else:
      rows = owner.setdefault(item.group, {})
      for i in range(item.length):
        rows.setdefault(item.start + i, stage_of(model, first + i))
  return {name: [stages[i] for i in sorted(stages)]
          if isinstance(stages, dict) else stages
          for name, stages in owner.items()}


def check(model):
  """Raises a ValueError if `num_fixed` or `exits` do not fit the plan."""
  # Checked before the model is hashed, since `exits` may not be hashable.
  if not isinstance(model.exits, tuple):
    raise ValueError(f'exits={model.exits!r} must be a tuple of (place, head)')
  for entry in model.exits:
    if (not isinstance(entry, tuple) or len(entry) != 2
        or type(entry[0]) is not int
        or entry[1] not in list(exit_heads.HEADS)):
      raise ValueError(
          f'exits={model.exits}: {entry!r} must be (place, head), with head '
          f'one of {sorted(exit_heads.HEADS)}')
  _check_items(model)
  num = num_encoders(model)
  if model.num_fixed >= num:
    raise ValueError(f'num_fixed={model.num_fixed} must be smaller than the '
                     f'number of encoders, {num}: otherwise no layer is '
                     f'droppable')
  places = [place for place, _ in model.exits]
  if places and (min(places) < 1 or max(places) >= num
                 or places != sorted(places)):
    raise ValueError(
        f'exits={model.exits}: places must be in 1 to {num - 1}, before the '
        f'last of {num} encoders, and must not decrease')
  for place, head in model.exits:
    exit_heads.check_place(head, tokens_at(model, place))


def _check_items(model):
  """Checks the items of a plan, without tracing them."""
  items = model.plan()
  if not items or not isinstance(items[0], Stack):
    raise ValueError(f'{type(model).__name__}.plan() must start with a stack')
  for i, item in enumerate(items):
    if isinstance(item, Stack):
      kinds = [branch.kind for branch in item.branches]
      if not set(kinds) <= set(KINDS):
        raise ValueError(f'plan()[{i}] has branches of kinds {kinds}; known: '
                         f'{KINDS}')
      if any(branch.replaces for branch in item.branches) and (
          item.length != 1 or any(b.kind for b in item.branches if b.replaces)):
        raise ValueError(f'plan()[{i}] has branches with replaces=True; they '
                         f"must be of kind '', in a stack of length 1, not "
                         f'{item.length}')
      at, grid = item.at, item.at.grid or ()
      if len(grid) == 2 and at.prefix + grid[0] * grid[1] != at.num:
        raise ValueError(f'plan()[{i}]: grid={grid} and prefix={at.prefix} do '
                         f'not add up to num={at.num} tokens')
  places = [e.place for e in model.own_exits()]
  num = sum(item.length for item in items if isinstance(item, Stack))
  if places != sorted(set(places)) or places[-1] != num:
    raise ValueError(f'own_exits() are at {places}; places must increase, and '
                     f'the last must be the number of encoders, {num}')
