"""What devices send each other in a program: read from its optimized HLO."""

import math
import re
from typing import NamedTuple

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
         'collective-permute')

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(
    rf' = (.*?[\])}}]) ({"|".join(KINDS)})(-start)?\((.*)')
_CALLED = re.compile(r'(?:calls|to_apply|condition|true_computation|'
                     r'false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_KNOWN = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')


class Sent(NamedTuple):
  """Collectives of one kind in a program.

  Attributes:
    count: how many are run; those of a loop as often as it turns.
    bytes: of their arrays on one device, unsharded: what an all-gather makes,
      what an all-reduce adds up, what goes into a reduce-scatter. A ring sends
      about as much from each device, for an all-reduce twice as much.
  """
  count: int
  bytes: int


def read(hlo: str) -> dict[str, Sent]:
  """Returns {kind: `Sent`} of a program.

  A loop that turns as often as the data need, such as one that draws random
  numbers until they are accepted, counts as one turn.

  Args:
    hlo: text of the optimized program, with one computation after the other.
  """
  bodies, entry = _computations(hlo)
  turns = _turns(bodies, entry)
  found = {}  # {(kind, channel): (count, bytes)}
  for name, lines in bodies.items():
    for i, line in enumerate(lines):
      match = _COLLECTIVE.search(line)
      if match is None or not turns.get(name):
        continue
      kind, size = match[2], _size(match[1], match[2], bool(match[3]))
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'  # TPUs fuse the slice that follows
      elif kind == 'reduce-scatter':
        size *= _group_size(line)
      # The parts of an asynchronous collective share a channel: its start, its
      # end, and fusions between them. Some fusions may be in a loop.
      channel = re.search(r'channel_id=(\d+)', line)
      key = kind, channel[1] if channel else (name, i)
      times, most = found.get(key, (turns[name], size))
      found[key] = min(times, turns[name]), max(most, size)
  return {kind: Sent(
      sum(n for (k, _), (n, _) in found.items() if k == kind),
      sum(n * size for (k, _), (n, size) in found.items() if k == kind))
          for kind in KINDS}


def _computations(hlo):
  """Returns ({name: lines}, name of the entry) of the computations."""
  bodies, entry, name = {}, None, None
  for line in hlo.splitlines():
    match = _COMPUTATION.match(line)
    if match:
      name = match[2]
      bodies[name] = []
      entry = name if match[1] else entry
    elif name is not None:
      bodies[name].append(line)
  return bodies, entry


def _turns(bodies, entry):
  """Returns {name: how often a computation is run}, 0 if it never is."""
  calls = {name: [call for line in lines for call in _calls(line, bodies)]
           for name, lines in bodies.items()}
  order, seen = [], set()

  def visit(name):
    if name not in seen:
      seen.add(name)
      for callee, _ in calls[name]:
        visit(callee)
      order.append(name)

  visit(entry)
  turns = {entry: 1}
  for name in reversed(order):  # callers first
    for callee, times in calls[name]:
      turns[callee] = turns.get(callee, 0) + turns[name] * times
  return turns


def _calls(line, bodies):
  """Yields (computation, how often) of those that an instruction runs."""
  loop = _WHILE.search(line)
  if loop:
    yield loop[2], _trip_count(line, bodies.get(loop[1], ()))
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += re.findall(r'[\w.\-]+', branches)
  yield from ((name, 1) for name in names if name in bodies)


def _trip_count(line, condition):
  """Returns how often a loop turns: its bound if it counts, else 1."""
  known = _KNOWN.search(line)
  if known:
    return int(known[1])
  text = '\n'.join(condition)
  compared = re.search(r'ROOT .* compare\(([^)]*)\), direction=LT', text)
  if compared:
    for operand in re.findall(r'[\w.\-]+', compared[1].replace('%', ' ')):
      bound = re.search(
          rf'%?{re.escape(operand)} = \w+\[\]\S* constant\((\d+)\)', text)
      if bound:
        return int(bound[1])
  return 1


def _size(result, kind, started):
  """Returns the bytes of a collective's result type."""
  sizes = [math.prod(map(int, filter(None, shape.split(','))))
           * (int(bits or 8) / 8)  # pred has no number
           for _, bits, shape in _SHAPE.findall(result)]
  if started and len(sizes) > 1:
    if kind == 'collective-permute':
      sizes = sizes[1:2]  # operand, result, and two numbers
    elif kind == 'all-gather':
      sizes = sizes[len(sizes) // 2:]  # operands, then results
  return int(sum(sizes))


def _group_size(line):
  """Returns how many devices take part in a collective."""
  groups = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  if groups:
    return len(groups[1].split(','))
  groups = re.search(r'replica_groups=\[\d+,(\d+)\]', line)  # [number, size]
  if groups:
    return int(groups[1])
  axes = dict(re.findall(r"'(\w+)'=(\d+)", line))
  taken = re.search(r"replica_groups=mesh.*?\{([^}]*)\}", line)
  names = re.findall(r"'(\w+)'", taken[1]) if taken else ()
  return math.prod(int(axes[name]) for name in names)
