"""A file of Evo-LeViT's authors with random tensors, for two tests."""

from adavit_jax import weights
import numpy as np


def tensors(model, seed=0):
  """A file of the authors' code with random tensors, for depths (2, 2)."""
  assert (model.depths, model.num_full) == ((2, 2), 1)
  rng, file = np.random.default_rng(seed), {}
  k, (c, d), n = model.key_dim, model.widths, model.side(0)**2
  random = lambda *shape, scale=0.4: np.float32(
      rng.normal(size=shape) * scale)

  def norm(name, width):
    file.update({
        f'{name}.weight': random(width) + 1, f'{name}.bias': random(width),
        f'{name}.running_mean': random(width),
        f'{name}.running_var': np.float32(rng.uniform(0.5, 2, width)),
        f'{name}.num_batches_tracked': np.int64(7)})

  def layer(name, *shape):
    fan_in = np.prod(shape[1:])
    file[f'{name}.c.weight'] = random(*shape, scale=1.4 / np.sqrt(fan_in))
    norm(f'{name}.bn', shape[0])

  def mlp(*names, width):
    for name in names:
      layer(f'{name}.m.0', 2 * width, width)
      layer(f'{name}.m.2', width, 2 * width)

  def msa(*names, width, heads):
    for name in names:
      file[f'{name}.m.learn_tradeoff'] = random(1)
      layer(f'{name}.m.qkv', 4 * heads * k, width)
      layer(f'{name}.m.proj.1', width, 2 * heads * k)

  file.update(cls_token=random(1, 1, c), poss=random(1, 1 + n, c))
  layer('patch_embed.0', c // 2, model.channels, 3, 3)
  layer('patch_embed.2', c, c // 2, 3, 3)
  for i in (0, 1):
    msa(f'blocks.{i}.m1', width=c, heads=model.heads[0])
    mlp(f'blocks.{i}.m2', width=c)
  heads = c // k
  file.update({'blocks.2.learn_tradeoff': random(1),
               'blocks.2.poss': random(1, 1 + n, c)})
  layer('blocks.2.kv', 5 * heads * k, c)
  layer('blocks.2.q.1', heads * k, c)
  layer('blocks.2.proj.1', d, 4 * heads * k)
  mlp('blocks.3', width=d)
  for i in (4, 5):
    msa(f'blocks.{i}.m1', width=d, heads=model.heads[1])
    mlp(f'blocks.{i}.m2', width=d)
  for name in ('head', 'head_dist', 'head_cls', 'head_cls_dist'):
    norm(f'{name}.bn', d)
    file[f'{name}.l.weight'] = random(model.num_classes, d)
    file[f'{name}.l.bias'] = random(model.num_classes)
  # The second names; encoders on selected tokens are together in a module.
  second = {'blocks.0.m1.m': '0.m', 'blocks.0.m2.m': '1.m',
            'blocks.1.m1.m': '2.m.0.m', 'blocks.1.m2.m': '2.m.1.m',
            'blocks.2': '3', 'blocks.3.m': '4.m',
            'blocks.4.m1.m': '5.m.0.m', 'blocks.4.m2.m': '5.m.1.m',
            'blocks.5.m1.m': '5.m.2.m', 'blocks.5.m2.m': '5.m.3.m'}
  for here, there in second.items():
    file.update({f'stage_blocks.{there}{name.removeprefix(here)}': x
                 for name, x in file.items() if name.startswith(f'{here}.')})
  return file


def checkpoint(file):
  return weights.Checkpoint('a.pth', file, {})
