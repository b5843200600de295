"""What the policy networks see of an image, as pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Scales standardised token features so that hundreds of them together do not
# outweigh the handful of difficulty features.
TOKEN_SCALE = 0.03 ** 0.5


class Stats(NamedTuple):
  """Mean and deviation of the policy's features on the training set, [F]."""
  mean: jax.Array
  std: jax.Array


class Features(NamedTuple):
  """What both networks see.

  Attributes:
    inputs: [B, F'] policy features.
    aux_logits: [B, K] of the auxiliary classifier, or None.
  """
  inputs: jax.Array
  aux_logits: jax.Array | None


def token_features(z1, tokens, prefix):
  """What the networks see of the tokens where the policy decides.

  Args:
    z1: [B, N, D]; each token is normalised.
    tokens: 'all' (flattened) or 'pooled': the class token and the mean of the
      others, or without a class token the mean alone.
    prefix: P, class and distillation tokens.

  Returns:
    [B, F] float32, see `num_features`.
  """
  x = z1.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  if tokens == 'all':
    return x.reshape(x.shape[0], -1)
  if not prefix:
    return x.mean(1)
  return jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=-1)


def num_features(at, tokens):
  """F of `token_features` at a place with `Tokens` `at`."""
  if tokens == 'all':
    return at.width * at.num
  return at.width * (2 if at.prefix else 1)


def difficulty(logits):
  """How sure a classifier is: [B, K] to [B, K + 3].

  The gradient stops here: the policy must not bend the classifier.

  Returns:
    Centred log-probabilities scaled to the size of one unit, largest
    probability, entropy over log K, and margin of the two largest.
  """
  log_p = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
  p = jnp.exp(log_p)
  top2 = jax.lax.top_k(p, 2)[0]
  entropy = -(p * log_p).sum(-1, keepdims=True) / jnp.log(p.shape[-1])
  shown = jnp.tanh((log_p - log_p.mean(-1, keepdims=True)) / 4)
  margin = top2[:, :1] - top2[:, 1:]
  return jnp.concatenate([shown, top2[:, :1], entropy, margin], axis=-1)
