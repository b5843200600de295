"""Evo-ViT on DeiT by lists of tokens, encoder after encoder, in float64.

Parameters are named as in the library.
"""

import math

import jax
import numpy as np

ERF = np.vectorize(math.erf)


def norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p['bias']


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def msa(p, x, num_heads):
  """x [N, D]: (branch [N, D], attention of the first token to the others)."""
  d = x.shape[1] // num_heads
  q, k, v = np.split(dense(p['qkv'], norm(p['norm1'], x)), 3, axis=1)
  out, attention = [], 0.
  for head in range(num_heads):
    here = slice(head * d, (head + 1) * d)
    weights = np.exp(q[:, here] @ k[:, here].T / math.sqrt(d))
    weights /= weights.sum(1, keepdims=True)
    out.append(weights @ v[:, here])
    attention += weights[0, 1:]
  return dense(p['proj'], np.concatenate(out, 1)), attention


def mlp(p, x):
  y = dense(p['fc1'], norm(p['norm2'], x))
  return dense(p['fc2'], y * (1 + ERF(y / math.sqrt(2))) / 2)


def embed(model, p, image):
  """Tokens [1 + T, D] of an image [S, S, C]."""
  size, n = model.patch_size, model.image_size // model.patch_size
  patches = [image[size * i:size * (i + 1), size * j:size * (j + 1)].ravel()
             for i in range(n) for j in range(n)]
  kernel = p['patch_embed']['proj']['kernel'].reshape(len(patches[0]), -1)
  x = np.array(patches) @ kernel + p['patch_embed']['proj']['bias']
  return np.concatenate([p['cls'][0], x]) + p['pos_embedding'][0]


def logits(model, params, images, keep=None):
  """Logits of both heads [2, B, K]: that of the mean, and that of training.

  Args:
    model: `EvoDeiT`; `layerwise` is 0 or 1.
    params: its backbone's parameters, not folded.
    images: [B, S, S, C].
    keep: [2, B, depth] of 0 and 1, MSA and MLP; None keeps all.
  """
  if keep is None:
    keep = np.ones((2, len(images), model.depth))
  p = jax.tree.map(np.float64, params)
  each = [_one(model, p, np.float64(image), keep[:, i])
          for i, image in enumerate(images)]
  return np.array(each).swapaxes(0, 1)


def _one(model, p, image, keep):
  cls, *patches = embed(model, p, image)
  num = kept = len(patches)
  scores = [0.] * num
  for i in range(model.depth):
    row = jax.tree.map(lambda x, i=i: x[i], p['encoders'])
    after = i - model.num_full
    alpha = 1. if after < 0 else model.alpha
    if after >= 0 and (model.layerwise or after % model.stage_length == 0):
      kept = int(num * model.keep_ratio)
      order = sorted(range(num), key=lambda j: -scores[j])
      patches = [patches[j] for j in order]
      scores = [scores[j] for j in order]
    x = np.array([cls, *patches[:kept]])
    if keep[0, i]:
      y, attention = msa(row, x, model.num_heads)
      x = x + y
      scores[:kept] = [(1 - alpha) * g + alpha * a
                       for g, a in zip(scores, attention)]
    if keep[1, i]:
      x = x + mlp(row, x)
    cls, patches = x[0], [*x[1:], *patches[kept:]]
  head = lambda name, y: dense(p[f'head{name}'], norm(p[f'norm{name}'], y))
  return head('', np.mean(patches, 0)), head('_cls', cls)
