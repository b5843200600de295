"""The plan of DVT: a stack for each transformer, and the bridges between."""

import functools

import jax
import jax.numpy as jnp

from adavit_jax.models import backbone
from adavit_jax.models import dvt_reuse
from adavit_jax.models import dvt_stem
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import upsample


def stack(m, index):
  """The encoders of a transformer.

  Args:
    m: `DVT`.
    index: index of the transformer.

  Returns:
    `Stack`.
  """
  at = m.at(index)
  if not m.has_reuse:
    return backbone.Stack(f'encoders_{index}', 0, m.depth,
                          encoder_lib.branches(m.encoder(index), at), at)
  out = {}
  if _writes(m, index):
    out = {'logits': jax.ShapeDtypeStruct(
        (m.num_heads, at.num, at.num), jnp.dtype(m.dtype))}
  return backbone.Stack(
      f'encoders_{index}', 0, m.depth, (_msa(m, index), _mlp(m, index)), at,
      each=('relations',) if _adds_relations(m, index) else (), out=out)


def bridge(m, index):
  """The step from a transformer to the next one.

  Args:
    m: `DVT`.
    index: index of the next transformer, 1 or more.

  Returns:
    `Bridge`.
  """
  def run(params, x, images, ctx):
    del ctx
    return m.apply({'params': params}, images, x, index, method='tokenize'), {}
  groups = [f'{name}_{index}' for name in (
      'patch_embed', 'cls', 'pos_embedding')]
  macs, keys = dvt_stem.macs(m, index), []
  if m.reuse_features:
    keys.append('x')
  if m.reuse_relations:
    groups.append(f'relations_{index}')
    keys.append('logits')
    macs += dvt_reuse.relations_macs(m.grids[index - 1], m.depth * m.num_heads)
  # Without reuse, the class token is carried and not read.
  read = None if m.has_reuse else 1
  return backbone.Bridge(run, macs, tuple(groups), reads_images=True, read=read,
                         keys=tuple(keys))


def paper_flops(m):
  """MACs of each transformer without the upsampling; the paper says FLOPs.

  Summed up to each exit, the shapes of its code give 0.468, 1.446 and 3.455 G
  with T2T-ViT-12. Our own count adds the upsampling, as products with the
  matrix of each axis: 1.0 and 2.5 % of the second and third transformer.
  """
  stages = []
  for i in range(len(m.grids)):
    before = bridge(m, i).macs if i else m.embed_macs
    stages.append(before + m.depth * sum(_macs(m, i, upsampling=False))
                  + m.width * m.num_classes)
  return tuple(stages)


def _adds_relations(m, index):
  """Whether a transformer reuses the relations of the one before it."""
  return bool(index) and m.reuse_relations


def _adds_features(m, index):
  """Whether a transformer reuses the features of the one before it."""
  return bool(index) and m.reuse_features


def _writes(m, index):
  """Whether the next transformer reuses the relations of this one."""
  return m.reuse_relations and index + 1 < len(m.grids)


def _msa(m, index):
  encoder, writes = m.encoder(index), _writes(m, index)
  def run(params, x, read, ctx):
    del read, ctx
    relations = None
    if _adds_relations(m, index):
      relations = upsample.relations(x['relations'], *_sides(m, index))
    y, logits = encoder.apply({'params': params}, x['x'], relations,
                              method='msa_and_logits')
    return backbone.Delta(
        {'x': y, 'logits': logits.astype(y.dtype)} if writes else {'x': y})
  return backbone.Branch('msa', run, _macs(m, index)[0],
                         unscaled=('logits',) if writes else ())


def _mlp(m, index):
  encoder = m.encoder(index)
  def run(params, x, read, ctx):
    del read, ctx
    apply = functools.partial(encoder.apply, {'params': params}, x['x'])
    if not _adds_features(m, index):
      return backbone.Delta({'x': apply(method='mlp')})
    y = apply(x['features'], *_sides(m, index), method='reusing_mlp')
    return backbone.Delta({'x': y})
  return backbone.Branch('mlp', run, _macs(m, index)[1])


def _sides(m, index):
  return m.grids[index - 1], m.grids[index]


def _macs(m, index, upsampling=True):
  """MACs of one encoder of a transformer, (MSA, MLP)."""
  msa, mlp = encoder_lib.macs(m.at(index).num, m.width, m.mlp_dim)
  if _adds_relations(m, index) and upsampling:
    msa += upsample.relations_macs(*_sides(m, index), m.num_heads)
  if _adds_features(m, index):
    prepared, upsampled = dvt_reuse.features_macs(
        *_sides(m, index), m.width, m.mlp_dim)
    mlp += prepared + upsampled * upsampling
  return msa, mlp
