"""Evo-LeViT of the paper's authors (YifanXu74/Evo-ViT).

Their files hold every encoder and subsampling under two names, `blocks` and
`stage_blocks`. `save` writes both, so that the authors' code finds every
tensor; reading takes `blocks`, and the others must repeat them.
"""

import re

from absl import logging

from adavit_jax.weights import layout
from adavit_jax.weights import levit_tensors
from adavit_jax.weights import positions

_BLOCKS, _COPIES = 'blocks.', 'stage_blocks.'
_TRADEOFF = dict(tradeoff='learn_tradeoff')
_MSA = dict(qkv='qkv', proj='proj.1', **_TRADEOFF)
_MLP = dict(fc1='0', fc2='2')
_SUBSAMPLE = dict(kv='kv', q='q.1', proj='proj.1', pos_embedding='poss',
                  **_TRADEOFF)
_MSA_OF_BLOCK = re.compile(r'blocks\.(\d+)\.m1\.m\.proj\.1\.c\.weight')


def _clean(tensors):
  known = {x.tobytes() for name, x in tensors.items()
           if name.startswith(_BLOCKS)}
  return levit_tensors.clean({
      name: x for name, x in tensors.items()
      if not (name.startswith(_COPIES) and x.tobytes() in known)})


def _modules(model):
  """The residual branches and subsamplings in their order in a file.

  Yields:
    (group, row or None, {parameter: name in the module}, name of the module,
    its second name).
  """
  number = copy = 0
  for i, depth in enumerate(model.depths):
    if i:
      yield (f'subsample_{i}', None, _SUBSAMPLE, f'{_BLOCKS}{number}',
             f'{_COPIES}{copy}')
      yield (f'mlp_{i}', 0, _MLP, f'{_BLOCKS}{number + 1}.m',
             f'{_COPIES}{copy + 1}.m')
      number, copy = number + 2, copy + 2
    full = 0 if i else min(model.num_full, depth)
    for row in range(depth):
      for j, names in enumerate((_MSA, _MLP)):
        # The encoders of a stage that run on selected tokens are one module.
        second = (f'{copy + 2 * row + j}' if row < full else
                  f'{copy + 2 * full}.m.{2 * (row - full) + j}')
        yield (f'encoders_{i}', row, names,
               f'{_BLOCKS}{number + row}.m{j + 1}.m', f'{_COPIES}{second}.m')
    number += depth
    copy += 2 * full + (depth > full)


def _tensors(model, names=()):
  """One `layout.Tensor` per parameter tensor of a file."""
  del names
  places = {('stem', None): {
      layer: f'patch_embed.{2 * i}'
      for i, layer in enumerate(model.groups()['stem'].kernels)}}
  for group, row, parts, name, _ in _modules(model):
    places.setdefault((group, row), {}).update(
        {here: f'{name}.{there}' for here, there in parts.items()})
  width = model.widths[0]
  return [
      layout.Tensor('cls_token', ('cls',), (1, 1, width)),
      layout.Tensor('poss', ('pos_embedding',), (1, model.at(0).num, width)),
      *levit_tensors.tensors(model, places, 'c', 'l')]


def _further(model, tensors):
  """The second names of tensors, see `layout.Format`."""
  more = {}
  for *_, name, copy in _modules(model):
    start = f'{name}.'
    more.update((f'{copy}.{there.removeprefix(start)}', x)
                for there, x in tensors.items() if there.startswith(start))
  return more


def _adapt(model, path, fmt, wanted, arrays):
  """Adds missing heads and resamples positions, see `layout.Format`."""
  if not any(name.startswith('head_cls.') for name in arrays):
    if any(t.leaf[0] == 'head_cls' for t in wanted):  # not if it is new
      logging.warning('%s has no heads of the class token: they become copies '
                      'of the others.', path)
    arrays.update({name.replace('head', 'head_cls', 1): x
                   for name, x in arrays.items()
                   if name.startswith(('head.', 'head_dist.'))})
  levit_tensors.adapt(model, path, fmt, wanted, arrays)
  for t in wanted:
    if t.leaf[-1] == 'pos_embedding':
      positions.adapt(t, arrays)


def _sizes(fmt, wanted, arrays):
  """{model attribute: value} implied by a file, see `layout.Format`."""
  del fmt, wanted
  found = {int(match[1]): len(arrays[match[0]])
           for match in filter(None, map(_MSA_OF_BLOCK.fullmatch, arrays))}
  widths, depths, last = [], [], None
  for number, width in sorted(found.items()):
    if last is None or number > last + 1:
      widths.append(width)
      depths.append(0)
    depths[-1] += 1
    last = number
  return dict(widths=tuple(widths), depths=tuple(depths))


FORMAT = layout.Format(
    title='Evo-LeViT',
    recognizes=lambda names: {'patch_embed.0.c.weight', 'poss'} <= set(names),
    clean=_clean,
    tensors=_tensors,
    block=r'blocks\.(\d+)\.',
    heads=('head', 'head_dist', 'head_cls', 'head_cls_dist'),
    adapt=_adapt,
    sizes=_sizes,
    images=levit_tensors.AUTHORS.images,
    further=_further)
