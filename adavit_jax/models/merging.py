"""Token merging (ToMe; Bolya et al., 2023, arXiv:2210.09461) as functions.

The tokens are split into A, those at even positions, and B, those at odd ones.
Each token of A has a best token in B; the r most similar pairs become one token
each. Prefix tokens never merge.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adavit_jax.models import token_order

SCHEDULES = ('constant', 'falling')


class Pairs(NamedTuple):
  """Which tokens merge, as positions in A or in B.

  Attributes:
    kept: the tokens of A that stay, ascending, [B, |A| - r].
    sources: the tokens of A that merge, [B, r].
    into: the token of B that each of them merges into, [B, r].
  """
  kept: jax.Array
  sources: jax.Array
  into: jax.Array


def schedule(merge, depth, kind):
  """The number of tokens that each encoder merges, before any clipping.

  Args:
    merge: r, their mean.
    depth: L, number of encoders.
    kind: 'constant', or 'falling': linearly from 2r to 0, with the same sum.

  Returns:
    L integers with the sum r L.
  """
  if kind == 'constant' or depth == 1:
    return (merge,) * depth
  # 2r(1 - i / (L - 1)), summed up to encoder i.
  total = [0] + [round(merge * (i + 1) * (2 * depth - 2 - i) / (depth - 1))
                 for i in range(depth)]
  return tuple(b - a for a, b in zip(total, total[1:]))


def clip(merge, num, prefix):
  """Clips r to half of the tokens that are not prefix.

  Args:
    merge: r.
    num: N, number of tokens.
    prefix: P, how many of them are prefix tokens.
  """
  return min(merge, (num - prefix) // 2)


def match(metric, num, prefix):
  """Finds the most similar pairs of a token of A and its best token of B.

  Args:
    metric: [B, N, d]; the similarity of tokens is its cosine. No gradient flows
      through the choice.
    num: r, number of pairs, as from `clip`.
    prefix: P, number of prefix tokens.

  Returns:
    `Pairs`.
  """
  metric = jax.lax.stop_gradient(metric.astype(jnp.float32))
  squares = (metric * metric).sum(-1, keepdims=True)
  metric *= jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
  skip_a, skip_b = _in_each(prefix)
  a, b = metric[:, 2 * skip_a::2], metric[:, 2 * skip_b + 1::2]
  similarity = jnp.einsum('bnd,bmd->bnm', a, b)
  order = token_order.by_score(similarity.max(-1))
  sources = order[:, :num]
  # The best is looked up for the sources alone: argmax is slow on CPU.
  into = token_order.take(similarity, sources).argmax(-1)
  kept = jnp.sort(order[:, num:], axis=1)
  first = jnp.broadcast_to(jnp.arange(skip_a), (kept.shape[0], skip_a))
  return Pairs(jnp.concatenate([first, kept + skip_a], 1), sources + skip_a,
               into + skip_b)


def match_macs(num, prefix, head_dim):
  """MACs of `match` for N tokens of head_dim d: the similarities."""
  skip_a, skip_b = _in_each(prefix)
  return ((num + 1) // 2 - skip_a) * (num // 2 - skip_b) * head_dim


def merge(x, size, pairs, prefix):
  """Merges tokens into means weighted by size.

  The result has the tokens of A that stay, then those of B; two prefix tokens
  stay in front of both.

  Args:
    x: tokens [B, N, D].
    size: number of patches in each token, [B, N] float32.
    pairs: `Pairs` of r tokens.
    prefix: P, number of prefix tokens, at most 2.

  Returns:
    (tokens [B, N - r, D], size [B, N - r]).
  """
  a, b, size_a, size_b = x[:, ::2], x[:, 1::2], size[:, ::2], size[:, 1::2]
  added = token_order.take(size_a, pairs.sources)[:, None]  # [B, 1, r]
  places = jnp.arange(b.shape[1])[:, None]
  added = jnp.where(pairs.into[:, None] == places, added, 0)  # [B, |B|, r]
  total = size_b + added.sum(-1)
  # A product with few columns takes less time than scattering them (on CPU).
  sources = token_order.take(a, pairs.sources)
  b = (size_b / total)[..., None] * b + jnp.einsum(
      'bmr,brd->bmd', added / total[..., None], sources)
  a = token_order.take(a, pairs.kept)
  return (_in_front(a, b.astype(x.dtype), prefix),
          _in_front(token_order.take(size_a, pairs.kept), total, prefix))


def merge_macs(num, merged, width):
  """MACs of `merge` for r pairs of N tokens of width D."""
  return num // 2 * merged * width


def _in_each(prefix):
  """How many of P prefix tokens are in A and in B."""
  return (prefix + 1) // 2, prefix // 2


def _in_front(a, b, prefix):
  """Joins A and B; a second prefix token, the first of B, stays second."""
  if prefix < 2:
    return jnp.concatenate([a, b], 1)
  return jnp.concatenate([a[:, :1], b[:, :1], a[:, 1:], b[:, 1:]], 1)
