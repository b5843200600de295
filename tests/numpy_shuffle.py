"""The Shuffle Transformer by loops over windows and pixels, in float64.

BatchNorm is not folded, and parameters are named as in the library.
"""

import itertools

import numpy as np


def norm(x, p, stats):
  """BatchNorm at inference, [..., D]."""
  x = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  return x * p['scale'] + p['bias']


def conv(x, kernel, stride, padding):
  """[S, S, C] with a kernel [k, k, C, D]; of each channel if C is 1."""
  size = len(kernel)
  x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
  side = (len(x) - size) // stride + 1
  depthwise = kernel.shape[2] == 1 and x.shape[2] > 1
  out = np.zeros((side, side, kernel.shape[3]))
  for row, column in itertools.product(range(side), repeat=2):
    for i, j in itertools.product(range(size), repeat=2):
      pixel = x[row * stride + i, column * stride + j]
      out[row, column] += (
          pixel * kernel[i, j, 0] if depthwise else pixel @ kernel[i, j])
  return out


def windows(side, size, shuffled):
  """Lists of the (row, column) of the tokens of each window."""
  num = side // size
  place = lambda window, i: i * num + window if shuffled else window * size + i
  return [[(place(row, i), place(column, j))
           for i in range(size) for j in range(size)]
          for row in range(num) for column in range(num)]


def attention(x, p, num_heads, size, shuffled):
  """Windowed attention [S, S, D], with a bias for each relative position."""
  out, d = np.zeros_like(x), x.shape[-1] // num_heads
  for window in windows(len(x), size, shuffled):
    q, k, v = np.split(
        np.stack([x[place] for place in window]) @ p['qkv']['kernel'], 3, 1)
    for head in range(num_heads):
      columns = slice(head * d, (head + 1) * d)
      for i in range(size * size):
        logits = k[:, columns] @ q[i, columns] / np.sqrt(d)
        for j in range(size * size):
          rows = i // size - j // size + size - 1
          logits[j] += p['table'][
              head, rows * (2 * size - 1) + i % size - j % size + size - 1]
        weights = np.exp(logits - logits.max())
        out[window[i]][columns] = weights @ v[:, columns] / weights.sum()
  return out @ p['proj']['kernel'] + p['proj']['bias']


def relu6(x):
  return np.clip(x, 0, 6)


def block(x, name, p, stats, num_heads, size):
  """One of the two blocks of an encoder, [S, S, D]."""
  def read(layer):
    key = f'{name}_{layer}'
    return norm(x, p[key]['norm'], stats[key]['norm']), p[key]
  y, layer = read('msa')
  x = x + attention(y, layer, num_heads, size, name == 'shuffled')
  y, layer = read('local')
  kernel = layer['conv']['kernel']
  x = x + conv(y, kernel, 1, len(kernel) // 2) + layer['conv']['bias']
  y, layer = read('mlp')
  y = relu6(y @ layer['fc1']['kernel'] + layer['fc1']['bias'])
  return x + y @ layer['fc2']['kernel'] + layer['fc2']['bias']


def forward(model, params, image):
  """One image [S, S, C]: (tokens behind each encoder, logits [K])."""
  p, stats = params['backbone'], params['batch_stats']
  x, features = image, []
  for i in range(2):
    layer, stride = p['stem'][f'conv_{i}'], min(2, model.patch_size >> i)
    x = conv(x, layer['kernel'], stride, 1) + layer['bias']
    x = relu6(norm(x, p['stem'][f'norm_{i}'], stats['stem'][f'norm_{i}']))
  x = x @ p['stem']['proj']['kernel'] + p['stem']['proj']['bias']
  for stage, depth in enumerate(model.depths):
    if stage:
      name = f'merge_{stage}'
      x = norm(x, p[name]['norm'], stats[name]['norm'])
      x = conv(x, p[name]['conv']['kernel'], 2, 0)
    for row in range(depth // 2):
      rows = [_row(tree[f'encoders_{stage}'], row) for tree in (p, stats)]
      for name in ('plain', 'shuffled'):
        x = block(x, name, *rows, model.heads[stage], model.window_size)
      features.append(x.reshape(-1, x.shape[-1]))
  head = p['head']
  return features, x.mean((0, 1)) @ head['kernel'] + head['bias']


def _row(tree, row):
  if isinstance(tree, dict):
    return {name: _row(leaf, row) for name, leaf in tree.items()}
  return tree[row]
