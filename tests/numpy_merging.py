"""A ViT that merges tokens, in float64, one image and one token at a time."""

from fractions import Fraction
import math

import numpy as np
from numpy_dvt import dense
from numpy_dvt import gelu
from numpy_dvt import norm
from numpy_dvt import softmax


class Token:
  """A token: its vector, how many patches it stands for, and its role."""

  def __init__(self, x, size=1, prefix=False):
    self.x, self.size, self.prefix = x, size, prefix


def wanted(model):
  """How many tokens each encoder shall merge."""
  r, depth = model.merge, model.depth
  if model.merge_schedule == 'constant':
    return [r] * depth
  sums, total = [0], Fraction()
  for i in range(depth):
    total += 2 * r * (1 - Fraction(i, depth - 1))
    sums.append(round(total))
  return [b - a for a, b in zip(sums, sums[1:])]


def pairs(tokens, metric, r):
  """[(token, the one that it merges into)], the r most similar pairs.

  At most half of the tokens that are not prefix merge. metric is [N, d].
  """
  unit = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
  found = []
  for i in range(0, len(tokens), 2):
    others = [(unit[i] @ unit[j], j) for j in range(1, len(tokens), 2)
              if not tokens[j].prefix]
    if others and not tokens[i].prefix:
      found.append((*max(others), i))
  found.sort(reverse=True)
  half = sum(not token.prefix for token in tokens) // 2
  return [(tokens[i], tokens[j]) for _, j, i in found[:min(r, half)]]


def merge(tokens, chosen):
  """The tokens after the chosen pairs became one token each."""
  gone = []
  for source, into in chosen:
    size = source.size + into.size
    into.x = (source.size * source.x + into.size * into.x) / size
    into.size = size
    gone.append(source)
  a, b = ([t for t in side if t not in gone] for side in (
      tokens[::2], tokens[1::2]))
  prefix = [t for t in tokens if t.prefix]
  return prefix + [t for t in a + b if not t.prefix]


def forward(model, params, image, keep):
  """Classifies one image.

  Args:
    model: a `ViT` with merge > 0 and a stem of patches.
    params: the groups.
    image: [S, S, C].
    keep: (msa [L], mlp [L]), gates of the layers of all encoders.

  Returns:
    (tokens [N, D] and sizes [N] after each encoder, `logits` [K]). The last
    encoder merges too.
  """
  p = params['backbone']
  tokens = embed(model, p, image)
  numbers, every, states = wanted(model), model.merge_every, []
  for i in range(model.depth):
    q = _row(p['encoders'], i)
    if every > 1 and i and i % every == 0:
      tokens = merge(tokens, pairs(
          tokens, _metric(model, q, tokens), sum(numbers[i - every:i])))
    chosen = pairs(tokens, _metric(model, q, tokens), numbers[i])
    delta = attention(model, q, tokens)
    for token, y in zip(tokens, delta):
      token.x = token.x + keep[0][i] * y
    if every == 1:
      tokens = merge(tokens, chosen)
    for token in tokens:
      y = dense(norm(token.x, q['norm2'], 1e-6), q['fc1'])
      token.x = token.x + keep[1][i] * dense(gelu(y), q['fc2'])
    states.append((np.stack([t.x for t in tokens]),
                   np.array([t.size for t in tokens])))
  heads = [p['head'], p['head_dist']] if model.distillation else [p['head']]
  return states, np.mean([dense(norm(token.x, p['norm'], 1e-6), head)
                          for token, head in zip(tokens, heads)], axis=0)


def embed(model, p, image):
  """The tokens of an image."""
  kernel = p['patch_embed']['proj']['kernel']
  size, side = model.patch_size, model.image_size // model.patch_size
  names = ('cls', 'dist') if model.distillation else ('cls',)
  rows = [p[name][0, 0] for name in names]
  for i in range(side):
    for j in range(side):
      patch = image[i * size:(i + 1) * size, j * size:(j + 1) * size]
      rows.append(np.tensordot(patch, kernel, 3)
                  + p['patch_embed']['proj']['bias'])
  return [Token(x + position, prefix=n < len(names)) for n, (x, position)
          in enumerate(zip(rows, p['pos_embedding'][0], strict=True))]


def attention(model, p, tokens):
  """What the MSA adds to each token, [N, D]."""
  q, k, v = _qkv(model, p, tokens)
  logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
  logits += np.log([token.size for token in tokens])
  y = softmax(logits) @ v  # [H, N, d]
  return dense(y.transpose(1, 0, 2).reshape(len(tokens), -1), p['proj'])


def _qkv(model, p, tokens):
  """Queries, keys and values [H, N, d]."""
  y = norm(np.stack([token.x for token in tokens]), p['norm1'], 1e-6)
  split = lambda y: y.reshape(
      len(tokens), model.num_heads, -1).transpose(1, 0, 2)
  return map(split, np.split(dense(y, p['qkv']), 3, -1))


def _metric(model, p, tokens):
  return list(_qkv(model, p, tokens))[1].mean(0)


def _row(tree, i):
  if isinstance(tree, dict):
    return {name: _row(leaf, i) for name, leaf in tree.items()}
  return tree[i]
