"""DVT in NumPy, float64, step by step as the paper's code describes it."""

import math

from adavit_jax.models import dvt_stem
import numpy as np


def nearest(x, side):
  """[..., s, s] -> [..., side, side], nearest neighbor."""
  at = [i * x.shape[-1] // side for i in range(side)]
  return x[..., at, :][..., at]


def adaptive_average(x, side):
  """[..., s, s] -> [..., side, side]: means over cells that may overlap."""
  s = x.shape[-1]
  edges = [(i * s // side, math.ceil((i + 1) * s / side)) for i in range(side)]
  return np.stack([np.stack([
      x[..., a:b, c:d].mean((-1, -2)) for c, d in edges], -1)
      for a, b in edges], -2)


def resized(x, new):
  """[..., old * old] -> [..., new * new]."""
  old = math.isqrt(x.shape[-1])
  x = nearest(x.reshape(*x.shape[:-1], old, old), 2 * old)
  return adaptive_average(x, new).reshape(*x.shape[:-2], new * new)


def features(x, new):
  """[B, 1 + old^2, F] -> [B, 1 + new^2, F], zeros for the class token."""
  y = resized(x[:, 1:].transpose(0, 2, 1), new).transpose(0, 2, 1)
  return np.concatenate([np.zeros_like(y[:, :1]), y], 1)


def relations(x, new):
  """[B, C, N, N] on the new grid: the keys, transposed, then the queries."""
  for _ in range(2):
    cls, rest = x[..., :1], x[..., 1:]
    x = np.concatenate([cls, resized(rest, new)], -1).swapaxes(-1, -2)
  return x


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def norm(x, p, epsilon):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
  return x * p['scale'] + p['bias']


def dense(x, p):
  return x @ p['kernel'] + p.get('bias', 0.)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def convolutions(x, p):
  """Two 1x1 convolutions over the channels of [B, C, N, N]."""
  conv = lambda x, p: np.einsum('bcij,cd->bdij', x, p['kernel']) + (
      p['bias'][:, None, None])
  return conv(gelu(conv(x, p['fc1'])), p['fc2'])


def encoder(x, p, heads, epsilon, keep, previous, relation):
  """Returns ([B, N, D], logits [B, H, N, N]); keep is (msa, mlp) [B]."""
  msa, mlp = (a[:, None, None] for a in keep)
  split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
  q, k, v = map(split, np.split(
      dense(norm(x, p['norm1'], epsilon), p['qkv']), 3, -1))
  logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + relation
  y = (softmax(logits) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
  x = x + msa * dense(y, p['proj'])
  z = x
  if previous is not None:
    f = norm(previous, p['reuse_norm'], epsilon)
    f = dense(gelu(dense(f, p['reuse_fc1'])), p['reuse_fc2'])
    z = np.concatenate([z, features(f, math.isqrt(x.shape[1]))], -1)
  y = dense(norm(z, p['norm2'], epsilon), p['fc1'])
  return x + mlp * dense(gelu(y), p['fc2']), logits * msa[..., None]


def unfold(images, size, stride, padding):
  """[B, S, S, C] -> [B, n * n, C * size * size], window after window."""
  edge = (padding, padding)
  x = np.pad(images, ((0, 0), edge, edge, (0, 0)))
  starts = range(0, x.shape[1] - size + 1, stride)
  return np.stack([
      x[:, i:i + size, j:j + size].transpose(0, 3, 1, 2).reshape(len(x), -1)
      for i in starts for j in starts], 1)


def performer(x, p, epsilon):
  k, q, v = np.split(dense(norm(x, p['norm1'], epsilon), p['kqv']), 3, -1)
  w = p['w']
  feature = lambda x: np.exp(
      x @ w.T - (x * x).sum(-1, keepdims=True) / 2) / math.sqrt(len(w))
  a = feature(q) @ feature(k).swapaxes(-1, -2)
  y = a @ v / (a.sum(-1, keepdims=True) + 1e-8)
  x = v + dense(y, p['proj'])
  y = dense(norm(x, p['norm2'], epsilon), p['fc1'])
  return x + dense(gelu(y), p['fc2'])


def patches(images, p, side, padding):
  kernel = p['proj']['kernel'].transpose(2, 0, 1, 3)
  x = unfold(images, side, side, padding)
  return x @ kernel.reshape(-1, kernel.shape[-1]) + p['proj']['bias']


def t2t(images, p, window, epsilon):
  x = unfold(images, *window)
  for name in ('performer_1', 'performer_2'):
    x = performer(x, p[name], epsilon)
    n = math.isqrt(x.shape[1])
    x = unfold(x.reshape(len(x), n, n, -1), 3, 2, 1)
  return dense(x, p['proj'])


def logits(model, params, images, keep=None):
  """Logits [E, B, K]; keep [2, B, all encoders] of 0 and 1, MSA and MLP."""
  p = _float64(params['backbone'])
  size, depth, heads = len(images), model.depth, model.num_heads
  keep = np.ones((2, size, depth * len(model.grids))) if keep is None else keep
  epsilon = 1e-5 if model.stem == 't2t' else 1e-6
  exits, x, kept = [], None, None
  for k, grid in enumerate(model.grids):
    stem = p[f'patch_embed_{k}']
    tokens = (t2t(images, stem, model.windows[k], epsilon)
              if model.stem == 't2t' else
              patches(images, stem, *dvt_stem.patches(model, k)))
    cls = np.tile(p[f'cls_{k}'], (size, 1, 1))
    previous = x if k and model.reuse_features else None
    x = np.concatenate([cls, tokens], 1) + p[f'pos_embedding_{k}']
    chunks = [0.] * depth
    if k and model.reuse_relations:
      maps = convolutions(np.concatenate(kept, 1), p[f'relations_{k}'])
      chunks = np.split(relations(maps, grid), depth, 1)
    kept = []
    for i in range(depth):
      x, found = encoder(
          x, _row(p[f'encoders_{k}'], i), heads, epsilon,
          keep[:, :, k * depth + i], previous, chunks[i])
      kept.append(found)
    y = norm(x[:, 0], p[f'norm_{k}'], epsilon)
    exits.append(dense(y, p[f'head_{k}']))
  return np.stack(exits)


def _float64(tree):
  if isinstance(tree, dict):
    return {key: _float64(leaf) for key, leaf in tree.items()}
  return np.asarray(tree, np.float64)


def _row(tree, i):
  if isinstance(tree, dict):
    return {key: _row(leaf, i) for key, leaf in tree.items()}
  return tree[i]
