"""The selection of tokens in Evo-LeViT, and its attention that scores them.

Where all tokens run, activations are a dict of `tokens` [B, 1 + T, D], the
class token and the patches in raster order, and `scores` [B, T] float32. Where
K patches run, `tokens` [B, 1 + K + 1, D] are the class token, the patches with
the highest scores and the representative token of the others, and `scores` are
[B, K]. `rest` [B, T - K, D] and `rest_scores` [B, T - K] are the others,
`order` [B, T] the raster places of all patches in this order, and `first`
[B, 1, D] the representative token as it was at the selection.
"""

import jax
import jax.numpy as jnp

from adavit_jax.models import levit_layers
from adavit_jax.models import token_order
from adavit_jax.models import token_selection
from adavit_jax.models.backbone import Delta
from adavit_jax.models.encoder import attention_and_row

_TRADEOFF = 0.5  # where it is not learned


def select(x, num):
  """Keeps the K = `num` patches with the highest scores and one token more."""
  order = token_order.by_score(x['scores'])
  scores = token_order.take(x['scores'], order)
  patches = token_order.take(x['tokens'][:, 1:], order)
  rest, rest_scores = patches[:, num:], scores[:, num:]
  first = representative(rest, rest_scores)
  tokens = jnp.concatenate([x['tokens'][:, :1], patches[:, :num], first], 1)
  return dict(tokens=tokens, scores=scores[:, :num], rest=rest,
              rest_scores=rest_scores, order=order, first=first)


def representative(rest, scores):
  """The mean of tokens [B, N, D], weighted by scores [B, N]: [B, 1, D].

  Without scores, where no attention has run, all tokens weigh the same.
  """
  total = scores.sum(1, keepdims=True)
  scores = jnp.where(total > 0, scores, 1 / scores.shape[1])
  weights = scores / jnp.where(total > 0, total, 1)
  mean = (weights[..., None] * rest.astype(jnp.float32)).sum(1, keepdims=True)
  return mean.astype(rest.dtype)


def patches(x):
  """The patches [B, T, D], in the order of `x`.

  Those that did not run gain what their representative token has gained.
  """
  if 'rest' not in x:
    return x['tokens'][:, 1:]
  gained = x['tokens'][:, -1:] - x['first']
  return jnp.concatenate([x['tokens'][:, 1:-1], x['rest'] + gained], 1)


def restore(x):
  """The inverse of `select`: all tokens, in raster order, and their scores."""
  if 'rest' not in x:
    return x
  order = token_order.inverse(x['order'])
  scores = jnp.concatenate([x['scores'], x['rest_scores']], 1)
  tokens = jnp.concatenate(
      [x['tokens'][:, :1], token_order.take(patches(x), order)], 1)
  return dict(tokens=tokens, scores=token_order.take(scores, order))


def attention(num_heads, key_dim, layerwise, p, x, read, ctx):
  """The branch MSA: new tokens, and new scores.

  Args:
    num_heads: H.
    key_dim: k, width of a query and of a key.
    layerwise: see `EvoLeViT`.
    p: layers `qkv` and `proj`; `tradeoff` [1].
    x: dict of activations.
    read: unused, since all tokens are read.
    ctx: `Context`.

  Returns:
    `Delta` of `tokens` and `scores`.
  """
  del read
  *qkv, stats = levit_layers.qkv(num_heads, key_dim, p, x['tokens'], ctx)
  y, row = attention_and_row(*qkv)
  y, more = levit_layers.projected(p, y, ctx)
  scores = x['scores']
  # Without the class token, and without the representative one.
  seen = row.mean(1)[:, 1:1 + scores.shape[1]]
  change = _weight(scores, p, layerwise, ctx) * (seen - scores)
  return Delta(dict(tokens=y, scores=change), {**stats, **more})


def mlp(p, x, read, ctx):
  """The branch MLP; see `levit_layers.mlp`."""
  y, stats = levit_layers.mlp(p, x['tokens'], read, ctx)
  return Delta(dict(tokens=y), stats)


def subsample(side, num_heads, key_dim, layerwise, p, x, ctx):
  """Attention of the class token and of a quarter of the patches to all.

  The scores of these patches are scaled such that they add up to what the
  scores of all patches did.

  Args:
    side: of the grid of patches.
    num_heads: H.
    key_dim: k, width of a query and of a key.
    layerwise: see `EvoLeViT`.
    p: layers `kv`, `q` and `proj`; `pos_embedding` [1, 1 + side^2, F];
      `tradeoff` [1].
    x: dict of activations, with all tokens.
    ctx: `Context` with the statistics of these layers.

  Returns:
    (dict of activations with all tokens of the next grid, dict of new
    statistics).
  """
  strided = lambda y: levit_layers.strided(y, side)
  tokens = x['tokens'] + p['pos_embedding'].astype(x['tokens'].dtype)
  some = jnp.concatenate([tokens[:, :1], strided(tokens[:, 1:])], 1)
  *qkv, stats = levit_layers.q_and_kv(num_heads, key_dim, p, some, tokens, ctx)
  y, row = attention_and_row(*qkv)
  y, more = levit_layers.projected(p, y, ctx)
  before, scores = x['scores'], strided(x['scores'])
  seen = strided(row.mean(1)[:, 1:])
  scores += _weight(before, p, layerwise, ctx) * (seen - scores)
  total = before.sum(1, keepdims=True)
  least = jnp.finfo(total.dtype).tiny
  scale = jnp.where(
      total > 0, total / jnp.maximum(scores.sum(1, keepdims=True), least), 1)
  return dict(tokens=y, scores=scores * scale), {**stats, **more}


def _weight(scores, p, layerwise, ctx):
  """The weight [B, 1] of the attention of the class token in new scores.

  The first attention that runs sets them: before it, all are 0.
  """
  weight = jnp.where(token_selection.reselects(layerwise, ctx), _TRADEOFF,
                     jax.nn.sigmoid(p['tradeoff']))
  return jnp.where((scores > 0).any(1, keepdims=True), weight, 1)
