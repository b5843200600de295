"""Selection of tokens by class attention, without training: a baseline.

In front of some encoders, only the patches to which the class token attends
most in that encoder stay; the others are dropped for good. Attention is the
mean over the heads. This is the selection of Evo-ViT and EViT alone: no token
stands for those that left, and nothing is trained for it.
"""

import math

import jax
import jax.numpy as jnp

from adavit_jax import cost
from adavit_jax.models import encoder as encoder_lib
from adavit_jax.models import plan
from adavit_jax.models import token_order
from adavit_jax.runtime import masked
from adavit_jax.runtime import modes

PLACES = (4, 8)  # encoders before a selection


def logits(model, params, images, keep):
  """Classifies images with the patches that are kept.

  Args:
    model: a `ViT` without merging and with one prefix token.
    params: its groups, folded.
    images: [B, S, S, C], normalized.
    keep: share of the patches that stays at each of `PLACES`.

  Returns:
    [B, K].
  """
  x, start = modes.embed(model, params, images).x, 0
  encoders = params['backbone']['encoders']
  for place in PLACES:
    x = masked.run(model, params, x, start=start, stop=place,
                   inference=True).x
    own = jax.tree.map(lambda leaf, i=place: leaf[i], encoders)
    scores = model.encoder.apply({'params': own}, x, method=_attention)
    num = math.ceil(keep * (x.shape[1] - 1))
    order = jnp.sort(jax.lax.top_k(scores[:, 1:], num)[1], axis=1)
    x = jnp.concatenate([x[:, :1], token_order.take(x[:, 1:], order)], 1)
    start = place
  x = masked.run(model, params, x, start=start, read=plan.read_last(model),
                 inference=True).x
  return modes.classify(model, params, x).total


def macs(model, keep):
  """MACs that `logits` computes."""
  total, num = cost.of(model).dense, model.num_tokens
  d, hidden = model.width, model.mlp_dim
  encoder = lambda n: sum(encoder_lib.macs(n, d, hidden))
  last = PLACES[1:] + (model.depth,)
  for place, stop in zip(PLACES, last):
    total += 2 * d * d + num * d * model.num_heads - (
        (stop - place) * encoder(model.num_tokens))
    num = math.ceil(keep * (num - 1)) + 1
    total += (stop - place) * encoder(num)
  return total - sum(encoder_lib.unread_macs(num, 1, d, hidden))


def _attention(module, x):
  """The class token's attention in an `Encoder`, x [B, N, D] -> [B, N]."""
  heads, d = module.num_heads, module.width
  y = module.norm1(x)
  q = encoder_lib.columns(module.qkv, y[:, 0], 0, d)
  kernel = module.qkv.variables['params']['kernel'][:, d:2 * d]
  # Queries times keys, in the order that computes no key. The bias of the keys
  # adds the same to all logits.
  q = jnp.einsum('bhe,dhe->bhd', q.reshape(len(x), heads, -1),
                 kernel.reshape(d, heads, -1))
  scores = jnp.einsum('bhd,bnd->bhn', q, y) * (d // heads) ** -0.5
  return jax.nn.softmax(scores).mean(1)
