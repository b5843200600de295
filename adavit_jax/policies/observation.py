"""Input features of the policy networks, as pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Scales the standardized token features, so that hundreds of them do not
# outweigh the few difficulty features.
TOKEN_SCALE = 0.03 ** 0.5


class Stats(NamedTuple):
  """Mean and standard deviation of the token features in training, [F]."""
  mean: jax.Array
  std: jax.Array


class Features(NamedTuple):
  """What the policy observes.

  Attributes:
    fixed: [B, F''] features that no network of the policy changes, the input of
      the value policy.
    inputs: [B, F'] input of both networks.
    aux_logits: [B, K] logits of the auxiliary classifier, or None.
  """
  fixed: jax.Array
  inputs: jax.Array
  aux_logits: jax.Array | None


def token_features(z1, tokens, prefix):
  """Features of the tokens where the policy decides.

  Args:
    z1: tokens [B, N, D]; each token is normalized.
    tokens: 'all' (flattened) or 'pooled': the class token and the mean of the
      others, or only the mean if there is no class token.
    prefix: P, number of class and distillation tokens.

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
  """Confidence features of a classifier: logits [B, K] to [B, K + 3].

  Gradients stop here: the policy must not change the classifier.

  Returns:
    Centered log-probabilities squashed to (-1, 1), largest probability, entropy
    divided by log K, and margin between the two largest probabilities.
  """
  log_p = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
  p = jnp.exp(log_p)
  top2 = jax.lax.top_k(p, 2)[0]
  entropy = -(p * log_p).sum(-1, keepdims=True) / jnp.log(p.shape[-1])
  squashed = jnp.tanh((log_p - log_p.mean(-1, keepdims=True)) / 4)
  margin = top2[:, :1] - top2[:, 1:]
  return jnp.concatenate([squashed, top2[:, :1], entropy, margin], axis=-1)
