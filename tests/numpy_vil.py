"""Vision Longformer in NumPy float64 with masked full attention.

It reads the tensors of the authors' files by name, and shares no code with the
library.
"""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def seen(rows, columns, window, num_global, exact):
  """Which key each query sees, [N, N]; every pair if `window` is 0."""
  n = num_global + rows * columns
  allow = np.ones((n, n), bool)
  if not window:
    return allow
  place = [divmod(i, columns) for i in range(rows * columns)]
  for i, query in enumerate(place):
    for j, key in enumerate(place):
      if exact:
        near = all(abs(a - b) <= window for a, b in zip(query, key))
      else:
        near = all(abs(a // window - b // window) <= 1
                   for a, b in zip(query, key))
      allow[num_global + i, num_global + j] = near
  return allow


def biases(tables, rows, columns, window, num_global):
  """What is added to the logits, [H, N, N], of the tables of an encoder."""
  table, heads = tables[0], tables[0].shape[1]
  g, n = num_global, num_global + rows * columns
  reach = 2 * window if window else rows  # full attention has square grids
  added = np.zeros((heads, n, n))
  for i in range(rows * columns):
    for j in range(rows * columns):
      steps = [a - b + reach - 1
               for a, b in zip(divmod(i, columns), divmod(j, columns))]
      if all(0 <= step <= 2 * reach - 2 for step in steps):
        index = steps[0] * (2 * reach - 1) + steps[1]
        added[:, g + i, g + j] = table[index]
  if g:
    added[:, :g, :g] = tables[2]
    added[:, :g, g:] = tables[1][0][:, :, None]
    added[:, g:, :g] = tables[1][1][:, None]
  return added


def attention(q, k, v, allow, added=0.):
  """Queries, keys and values [B, H, N, d] to [B, H, N, d]."""
  logits = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1]) + added
  logits = np.where(allow, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True) @ v


class Naive:
  """Attributes: tensors of a file, and those of `ViL` in `model`."""

  def __init__(self, model, tensors):
    self.model = model
    self.tensors = {k: np.float64(x) for k, x in tensors.items()}

  def dense(self, name, x):
    p = self.tensors
    return x @ p[f'{name}.weight'].T + p[f'{name}.bias']

  def norm(self, name, x):
    p = self.tensors
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * p[f'{name}.weight'] + p[f'{name}.bias']

  def embed(self, i, x):
    """A stage's tokens [B, N, D] of a grid [B, S, S, C]."""
    name, p, m = f'layer{i + 1}.0', self.tensors, self.model
    size, g = m.patch_sizes[i], m.num_globals[i]
    b, s, _, c = x.shape
    n = s // size
    x = x.reshape(b, n, size, n, size, c)
    x = np.einsum('bipjqc,dcpq->bijd', x, p[f'{name}.proj.weight'])
    x = self.norm(f'{name}.norm_embed', x + p[f'{name}.proj.bias'])
    if not m.relative[i]:
      half = x.shape[-1] // 2
      x[..., :half] += p[f'{name}.x_pos_embed'][0][:, None]
      x[..., half:] += p[f'{name}.y_pos_embed'][0][None]
    x = x.reshape(b, n * n, -1)
    if not g:
      return x
    first = p[f'{name}.cls_token']
    if not m.relative[i]:
      first = first + p[f'{name}.cls_pos_embed']
    return np.concatenate([np.repeat(first, b, 0), x], 1)

  def msa(self, i, name, x):
    m, p, name = self.model, self.tensors, f'{name}.attn'
    b, n, d = x.shape
    heads, g, window = m.heads[i], m.num_globals[i], m.windows[i]
    side = math.isqrt(n - g)
    if window:
      y = np.concatenate(
          [self.dense(f'{name}.query', x), self.dense(f'{name}.kv', x)], -1)
    else:
      y = self.dense(f'{name}.qkv', x)
    q, k, v = y.reshape(b, n, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    added = 0.
    if m.relative[i]:
      tables = [p.get(f'{name}.{part}_relative_position_bias{end}')
                for part, end in (('local', '_table'), ('g2l', ''),
                                  ('g2g', ''))]
      added = biases(tables, side, side, window, g)
    y = attention(q, k, v, seen(side, side, window, g, m.exact_windows), added)
    return self.dense(f'{name}.proj', y.swapaxes(1, 2).reshape(b, n, d))

  def mlp(self, name, x):
    y = self.dense(f'{name}.mlp.fc1', x)
    y = y * (1 + ERF(y / math.sqrt(2))) / 2
    return self.dense(f'{name}.mlp.fc2', y)

  def logits(self, images):
    x, m = np.float64(images), self.model
    for i, depth in enumerate(m.depths):
      if i:
        x = x[:, m.num_globals[i - 1]:]
        side = math.isqrt(x.shape[1])
        x = x.reshape(len(x), side, side, -1)
      x = self.embed(i, x)
      for row in range(depth):
        msa, mlp = (f'layer{i + 1}.{2 * row + j}' for j in (1, 2))
        x = x + self.msa(i, msa, self.norm(f'{msa}.norm', x))
        x = x + self.mlp(mlp, self.norm(f'{mlp}.norm', x))
    x = self.norm('norm', x)
    return self.dense('head', x[:, 0] if m.num_globals[-1] else x.mean(1))
