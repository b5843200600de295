"""Evo-LeViT in NumPy float64, one image at a time, in raster order throughout.

It reads the tensors of the authors' files by name, and shares no code with the
library. Tokens are selected as sets of places; none are moved.
"""

import math

import numpy as np


def hard_swish(x):
  return x * np.clip(x + 3, 0, 6) / 6


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


class Naive:
  """Runs an `EvoLeViT`, whose `layerwise` is 0 or 1.

  Attributes:
    model: `EvoLeViT`.
    tensors: of a file.
    dropped: names of residual branches that do not run, 'blocks.0.m1' or
      'blocks.4' behind a subsampling.
    kept: sets of the places that were selected in the last image, in order.
  """

  def __init__(self, model, tensors, dropped=()):
    self.model, self.dropped, self.kept = model, dropped, []
    self.tensors = {k: np.float64(x) for k, x in tensors.items()}

  def norm(self, name, x):
    p = lambda part: self.tensors[f'{name}.{part}']
    x = (x - p('running_mean')) / np.sqrt(p('running_var') + 1e-5)
    return x * p('weight') + p('bias')

  def layer(self, name, x):
    """A matrix product and its BatchNorm."""
    return self.norm(f'{name}.bn', x @ self.tensors[f'{name}.c.weight'].T)

  def conv(self, name, x):
    """A 3x3 convolution of stride 2 of [S, S, C], and its BatchNorm."""
    kernel, n = self.tensors[f'{name}.c.weight'], len(x) // 2
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = np.array([[np.einsum('ocij,ijc->o', kernel,
                             x[2 * i:2 * i + 3, 2 * j:2 * j + 3])
                   for j in range(n)] for i in range(n)])
    return self.norm(f'{name}.bn', y)

  def attend(self, name, q, k, v):
    """[N, H, d] each: ([Q, D], attention [N] of the first query, over heads).
    """
    out, seen = [], 0.
    for head in range(q.shape[1]):
      scale = math.sqrt(self.model.key_dim)
      weights = softmax(q[:, head] @ k[:, head].T / scale)
      out.append(weights @ v[:, head])
      seen = seen + weights[0] / q.shape[1]
    y = hard_swish(np.concatenate(out, 1))
    return self.layer(f'{name}.proj.1', y), seen

  def attention(self, name, x, heads):
    d = self.model.key_dim
    y = self.layer(f'{name}.qkv', x).reshape(len(x), heads, -1)
    return self.attend(name, y[..., :d], y[..., d:2 * d], y[..., 2 * d:])

  def mlp(self, name, x):
    return self.layer(f'{name}.2', hard_swish(self.layer(f'{name}.0', x)))

  def alpha(self, name):
    """The weight of new scores; learned unless encoders select anew."""
    if self.model.layerwise:
      return 0.5
    return sigmoid(self.tensors[f'{name}.learn_tradeoff'])

  def run(self, blocks, heads, cls, x, scores, kept):
    """Runs encoders on one selection: (class token, patches, scores)."""
    order = sorted(range(len(x)), key=lambda i: -scores[i])
    slow, fast = order[:kept], order[kept:]
    tokens = [cls, *x[slow]]
    if fast:
      self.kept.append(frozenset(slow))
      # Before any attention has run, all weigh the same.
      weights = scores[fast] if scores.any() else np.ones(len(fast))
      tokens.append(weights / weights.sum() @ x[fast])
    tokens, gained = np.array(tokens), 0.
    for block in blocks:
      if f'{block}.m1' not in self.dropped:
        y, seen = self.attention(f'{block}.m1.m', tokens, heads)
        seen = seen[1:1 + kept]
        alpha = self.alpha(f'{block}.m1.m') if scores.any() else 1.
        scores[slow] = (1 - alpha) * scores[slow] + alpha * seen
        tokens, gained = tokens + y, gained + y[-1]
      if f'{block}.m2' not in self.dropped:
        y = self.mlp(f'{block}.m2.m', tokens)
        tokens, gained = tokens + y, gained + y[-1]
    x = x.copy()
    x[slow] = tokens[1:1 + kept]
    if fast:
      x[fast] += gained
    return tokens[0], x, scores

  def subsample(self, name, stage, cls, x, scores):
    m, side = self.model, math.isqrt(len(x))
    heads, d = m.widths[stage] // m.key_dim, m.key_dim
    some = [i for i in range(len(x))
            if i // side % 2 == 0 and i % side % 2 == 0]
    tokens = np.concatenate([cls[None], x]) + self.tensors[f'{name}.poss'][0]
    y = self.layer(f'{name}.kv', tokens).reshape(len(tokens), heads, -1)
    q = self.layer(f'{name}.q.1', tokens[[0, *(1 + i for i in some)]])
    y, seen = self.attend(
        name, q.reshape(len(q), heads, -1), y[..., :d], y[..., d:])
    alpha = self.alpha(name)
    new = (1 - alpha) * scores[some] + alpha * seen[1:][some]
    return y[0], y[1:], new * scores.sum() / new.sum()

  def one(self, image):
    """The logits of one image [S, S, C], by head."""
    m, p, x = self.model, self.tensors, np.float64(image)
    self.kept = []
    for i in range(int(math.log2(m.patch_size))):
      x = self.conv(f'patch_embed.{2 * i}', hard_swish(x) if i else x)
    x = x.reshape(-1, x.shape[-1]) + p['poss'][0, 1:]
    cls, scores = p['cls_token'][0, 0] + p['poss'][0, 0], np.zeros(len(x))
    number = 0
    for i, (depth, heads) in enumerate(zip(m.depths, m.heads)):
      if i:
        cls, x, scores = self.subsample(
            f'blocks.{number}', i - 1, cls, x, scores)
        tokens = np.concatenate([cls[None], x])
        name = f'blocks.{number + 1}'
        if name not in self.dropped:
          tokens = tokens + self.mlp(f'{name}.m', tokens)
        cls, x, number = tokens[0], tokens[1:], number + 2
      blocks = [f'blocks.{number + row}' for row in range(depth)]
      full = m.num_full if i == 0 else 0
      cls, x, scores = self.run(
          blocks[:full], heads, cls, x, scores, len(x))
      rest, kept = blocks[full:], int(len(x) * m.keep_ratio)
      for group in [[block] for block in rest] if m.layerwise else [rest]:
        cls, x, scores = self.run(group, heads, cls, x, scores, kept)
      number += depth
    head = lambda name, y: (
        self.norm(f'{name}.bn', y) @ p[f'{name}.l.weight'].T
        + p[f'{name}.l.bias'])
    return dict(cls=head('head', x.mean(0)), dist=head('head_dist', x.mean(0)),
                aux_cls=head('head_cls', cls),
                aux_dist=head('head_cls_dist', cls))
