"""An odd backbone, with what a plan may have and no model of the library has.

Its stacks have other branches than an encoder's two, one always runs, two
stacks share a group of parameters, activations may be a dict, and there may be
batch statistics.
"""

import functools

from adavit_jax import models
from adavit_jax.models import backbone
from adavit_jax.models import exit_heads
from adavit_jax.models import plan
from adavit_jax.models.backbone import Branch
from adavit_jax.models.backbone import Delta
from adavit_jax.models.backbone import EVAL
from adavit_jax.models.backbone import Stack
from adavit_jax.models.backbone import Tokens
import jax
import jax.numpy as jnp

D, K = 6, 3


def model(**overrides):
  found = Odd(**{**dict(image_size=4, num_classes=K, channels=1), **overrides})
  found.check()
  plan.check(found)
  return found


def tokens_of(x):
  return x['tokens'] if isinstance(x, dict) else x


def _changed(x, y):
  """A dict also counts what is added to its tokens."""
  if isinstance(x, dict):
    return {'tokens': y, 'sum': y.sum(1) * jnp.tanh(x['sum'] + 1)}
  return y


def _shift(name, params, x, read, ctx):
  """Mixes tokens, and always computes all of them."""
  del ctx
  assert read is None
  y = jnp.tanh(jnp.roll(tokens_of(x), 1, axis=1) @ params[name])
  return Delta(_changed(x, y))


def _mix(name, params, x, read, ctx):
  """Mixes tokens, and computes those that are read."""
  del ctx
  mean = tokens_of(x).mean(1, keepdims=True)
  y = jnp.tanh((tokens_of(x)[:, :read] + mean) @ params[name])
  return Delta(_changed(x, y))


def _local(name, params, x, read, ctx):
  """Each token alone; batch statistics are subtracted where there are any."""
  assert read is None
  y = jnp.tanh(tokens_of(x) @ params[name])
  y, stats = centered(y, params, ctx.stats, ctx.train)
  return Delta(_changed(x, y), stats)


def centered(y, params, stats, train):
  """y [..., D] less its mean: (result, changed statistics)."""
  if stats is None:
    return y - params.get('mean', 0), {}
  if not train:
    return y - stats['mean'], {}
  mean = y.mean(tuple(range(y.ndim - 1)))
  return y - mean, {'mean': (3 * stats['mean'] + mean) / 4}


class Odd(backbone.Backbone):
  """8 tokens in 2 + 1 encoders, then 4 in 2 more; 2 MSA and 8 MLP layers.

  Attributes:
    dictionary: activations are a dict of tokens without a class token, and of
      a sum, which the exit reads.
    norm: there are batch statistics.
  """
  dictionary: bool = False
  norm: bool = False

  def init_variables(self, key):
    layers = lambda num, *names: dict.fromkeys(names, (num, D, D))
    shapes = dict(
        stem=dict(kernel=(self.image_size ** 2 * self.channels, 8 * D)),
        a=layers(3, 'wide', 'shift', 'local'), join=dict(kernel=(2 * D, D)),
        b=layers(2, 'shift', 'mix', 'local'),
        head=dict(kernel=(D, self.num_classes)))
    stats = dict(stem=(8 * D,), a=(3, D), join=(D,), b=(2, D),
                 head=(self.num_classes,))
    is_shape = lambda x: isinstance(x, tuple)
    leaves, tree = jax.tree.flatten(shapes, is_shape)
    params = jax.tree.unflatten(tree, [
        jax.random.normal(key, shape)
        for key, shape in zip(jax.random.split(key, len(leaves)), leaves)])
    return params, {name: {'mean': jnp.zeros(shape)}
                    for name, shape in stats.items()} if self.norm else {}

  def fold(self, params, stats):
    return {name: {**group, **stats.get(name, {})}
            for name, group in params.items()}

  def _linear(self, name, x, params, ctx):
    """(result, changed statistics of the whole backbone)."""
    stats = None if ctx.stats is None else ctx.stats[name]
    y = x @ params[name]['kernel']
    y, stats = centered(y, params[name], stats, ctx.train)
    return y, {name: stats} if stats else {}

  def embed(self, params, images, ctx):
    x, stats = self._linear(
        'stem', images.reshape(len(images), -1), params, ctx)
    x = x.reshape(-1, 8, D)
    return ({'tokens': x, 'sum': x.sum(1)} if self.dictionary else x), stats

  def join(self, params, x, images, ctx):
    """The bridge: pairs of tokens become one."""
    del images
    pairs = tokens_of(x).reshape(-1, 4, 2 * D)
    y, stats = self._linear('join', pairs, params, ctx)
    return ({**x, 'tokens': y} if self.dictionary else y), stats

  def classify(self, params, x, index, ctx):
    y, stats = self._linear(
        'head', x['sum'] if self.dictionary else x[:, 0], params, ctx)
    return models.Logits(y), stats

  def at(self, num):
    return Tokens(D, num, 0 if self.dictionary else 1, None, 2, 2 * D)

  def tokens(self, x, at):
    assert tokens_of(x).shape[1:] == (at.num, at.width)
    return tokens_of(x)

  def plan(self):
    def branch(kind, run, name, num, unread=False, local=False):
      unread = (num - 1) * D * D * (unread and not self.dictionary)
      return Branch(kind, functools.partial(run, name), num * D * D, unread,
                    local and not self.dictionary)
    first = (branch('mlp', _shift, 'wide', 8), branch('', _shift, 'shift', 8),
             branch('mlp', _local, 'local', 8, True, True))
    last = (branch('', _shift, 'shift', 4), branch('msa', _mix, 'mix', 4, True),
            branch('mlp', _local, 'local', 4, True, True))
    return (Stack('a', 0, 2, first, self.at(8)),
            Stack('a', 2, 1, first, self.at(8)),
            backbone.Bridge(self.join, 4 * 2 * D * D, ('join',)),
            Stack('b', 0, 2, last, self.at(4)))

  def own_exits(self):
    return backbone.OwnExit(5, D * self.num_classes, ('head',),
                            None if self.dictionary else 1),

  @property
  def embed_macs(self):
    return self.image_size ** 2 * self.channels * 8 * D


def by_hand(model, params, images, actions, ctx=EVAL):
  """Branch after branch.

  Args:
    model: `Odd`.
    params: groups; folded, or ctx.stats are those of the whole backbone.
    images: [B, 4, 4, 1].
    actions: `Actions` [B, L1], [B, L2].
    ctx: `Context`.

  Returns:
    (logits at all exits [E, B, K], new batch statistics or None).
  """
  p, stats = params['backbone'], dict(ctx.stats or {})
  keep = [iter(jnp.moveaxis(a, -1, 0)) for a in actions]
  x, changed = model.embed(p, images, ctx)
  stats.update(changed)
  places = []
  for i in range(5):
    if i == 3:
      x, changed = model.join(p, x, None, ctx)
      stats.update(changed)
    group, row = ('a', i) if i < 3 else ('b', i - 3)
    own = jax.tree.map(lambda leaf: leaf[row], p[group])
    here = ctx
    if ctx.stats is not None:
      here = ctx._replace(stats={'mean': ctx.stats[group]['mean'][row]})
    for kind, run, name in (
        [('mlp', _shift, 'wide'), ('', _shift, 'shift'),
         ('mlp', _local, 'local')] if i < 3 else
        [('', _shift, 'shift'), ('msa', _mix, 'mix'),
         ('mlp', _local, 'local')]):
      y, changed = run(name, own, x, None, here)
      if changed:
        mean = jnp.asarray(stats[group]['mean']).at[row].set(changed['mean'])
        stats[group] = {'mean': mean}
      if kind and i >= model.num_fixed:
        gate = next(keep[('msa', 'mlp').index(kind)])
        y = jax.tree.map(lambda y: gate.reshape(-1, *[1] * (y.ndim - 1)) * y, y)
      x = jax.tree.map(jnp.add, x, y)
    places.append(tokens_of(x))
  assert not any(list(it) for it in keep)
  logits = []
  for i, (place, name) in enumerate(model.exits):
    head = exit_heads.create(name, model.at(8 if place <= 3 else 4), K)
    logits.append(head.apply(
        {'params': params['heads'][f'exit_{i}']}, places[place - 1]))
  last, changed = model.classify(p, x, 0, ctx)
  stats.update(changed)
  return jnp.stack([*logits, last.total]), stats or None
