"""The plan of a ViT that merges tokens, and what is checked of it.

Activations are {'tokens': [B, N, D], 'size': [B, N] float32}, the number of
patches in each token. Merging inside an encoder adds the arrays of
`merging.Pairs` to them between the match, before the MSA, and the merge.
"""

import numbers

import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import merging


def start(x):
  """The activations before the first encoder: tokens [B, N, D] of size 1."""
  return {'tokens': x, 'size': jnp.ones(x.shape[:2], jnp.float32)}


def plan(m):
  """Returns the plan of a `ViT` with `merge` > 0.

  An encoder that merges is a stack of its own. With `merge_every` > 1, bridges
  merge, and the encoders between them are one stack.
  """
  items, num = [], m.num_tokens
  for i, merged in enumerate(amounts(m)):
    before, after = _at(m, num), _at(m, num - merged)
    num -= merged
    plain = backbone.Stack('encoders', i, 1, _plain(m, after), after)
    if merged and m.merge_every > 1:
      items += [_bridge(m, i, before, merged), plain]
    elif merged:
      items.append(plain._replace(
          branches=_merging(m, before, after), before=before))
    elif items and items[-1].at == after and len(items[-1].branches) == 2:
      items[-1] = items[-1]._replace(length=items[-1].length + 1)
    else:
      items.append(plain)
  return tuple(items)


def amounts(m):
  """The number of tokens that merge in each encoder, or before it by a bridge.

  Nothing merges in the last encoder: only its prefix is read afterwards.
  """
  wanted = merging.schedule(m.merge, m.depth, m.merge_schedule)
  every, result, num = m.merge_every, [], m.num_tokens
  for i in range(m.depth):
    if every == 1:
      merged = wanted[i] if i + 1 < m.depth else 0
    else:
      merged = sum(wanted[i - every:i]) if i and i % every == 0 else 0
    result.append(merging.clip(merged, num, m.num_prefix))
    num -= result[-1]
  return result


def run(m, params, x):
  """Runs all encoders of a `ViT`: tokens [B, N, D] to activations."""
  x = start(x)
  for item in plan(m):
    if isinstance(item, backbone.Bridge):
      x, _ = item.run(params, x, None, backbone.EVAL)
      continue
    for i in range(item.start, item.start + item.length):
      p = jax.tree.map(lambda leaf, i=i: leaf[i], params[item.group])
      for branch in item.branches:
        y = branch.run(p, x, None, backbone.EVAL).x
        x = y if branch.replaces else {**x, 'tokens': x['tokens'] + y['tokens']}
  return x


def check(m):
  """Raises a ValueError if the attributes of merging are invalid."""
  for name, least in (('merge', 0), ('merge_every', 1)):
    value = getattr(m, name)
    if (not isinstance(value, numbers.Integral) or isinstance(value, bool)
        or value < least):
      raise ValueError(f'{name}={value!r} must be an integer of at least '
                       f'{least}')
  if m.merge_schedule not in merging.SCHEDULES:
    raise ValueError(f'merge_schedule={m.merge_schedule!r} must be one of '
                     f'{merging.SCHEDULES}')
  if m.merge and m.merge_every >= m.depth:
    raise ValueError(f'merge_every={m.merge_every} must be smaller than depth='
                     f'{m.depth}, or no encoder merges; set merge=0 for none')


def _at(m, num):
  """`Tokens` where N are left; merged tokens form no grid."""
  at = m.at._replace(num=num)
  return at if num == m.num_tokens else at._replace(grid=None)


def _plain(m, at):
  """The branches MSA and MLP of an encoder at constant N."""
  msa, mlp = encoder_lib.branches(m.encoder, at)

  def attend(params, x, read, ctx):
    del ctx
    return backbone.Delta({'tokens': m.encoder.apply(
        {'params': params}, x['tokens'], read, jnp.log(x['size']),
        method='msa')})

  def each(params, x, read, ctx):
    return backbone.Delta(
        {'tokens': mlp.run(params, x['tokens'], read, ctx).x})

  return msa._replace(run=attend), mlp._replace(run=each)


def _merging(m, before, after):
  """The branches of an encoder that merges between its MSA and its MLP."""
  prefix, merged = before.prefix, before.num - after.num

  def match(params, x, read, ctx):
    del ctx
    if read is not None:  # only tokens that never merge are read
      return backbone.Delta(_first(x, read))
    pairs = _match(m, params, x['tokens'], merged)
    return backbone.Delta({**x, **pairs._asdict()})

  def merge(params, x, read, ctx):
    del params, ctx
    if read is not None:
      return backbone.Delta(_first(x, read))
    pairs = merging.Pairs(*(x[name] for name in merging.Pairs._fields))
    return backbone.Delta(_merged(x, pairs, prefix))

  steps = [backbone.Branch('', run, macs, unread=macs, replaces=True)
           for run, macs in zip((match, merge), _macs(m, before.num, merged))]
  return steps[0], _plain(m, before)[0], steps[1], _plain(m, after)[1]


def _bridge(m, index, before, merged):
  """Merges before an encoder, by the keys of that encoder."""
  def run(params, x, images, ctx):
    del images, ctx
    own = jax.tree.map(lambda leaf: leaf[index], params['encoders'])
    pairs = _match(m, own, x['tokens'], merged)
    return _merged(x, pairs, before.prefix), {}
  return backbone.Bridge(run, sum(_macs(m, before.num, merged)))


def _match(m, params, tokens, merged):
  metric = m.encoder.apply({'params': params}, tokens, method='mean_keys')
  return merging.match(metric, merged, m.num_prefix)


def _merged(x, pairs, prefix):
  return dict(zip(('tokens', 'size'), merging.merge(
      x['tokens'], x['size'], pairs, prefix)))


def _first(x, read):
  return {name: x[name][:, :read] for name in ('tokens', 'size')}


def _macs(m, num, merged):
  """MACs of match and of merge for N tokens and r pairs."""
  head_dim = m.width // m.num_heads
  return (num * m.width * head_dim
          + merging.match_macs(num, m.num_prefix, head_dim),
          merging.merge_macs(num, merged, m.width))
