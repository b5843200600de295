"""The two policy networks and the likelihood of what they decide.

Equations are those of US 12,394,190. The patent prints the likelihoods (5) and
(8) with the kept layers alone; the product here has the factor 1 - s of each
dropped layer too, without which it is no distribution.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions
from adavit_jax.policies import inputs
from adavit_jax.runtime import modes


class PolicyNets(nn.Module):
  """One dense layer from z1 to MSA actions, one from (z1, a1) to MLP actions.

  Two early answers may show both networks how hard an image is, by their
  log-probabilities, largest probability, entropy and margin beside z1: with
  `aux` that of a linear classifier on z1, which tells how hard the image is for
  any model; with `head` that of the ViT's own head, put on z1, which tells what
  this model would say if it dropped everything. Gradients stop at z1.

  Attributes:
    num_layers: L.
    num_classes: K.
    tokens: 'all' (flattened) or 'pooled' (class token, mean of the others).
    aux: adds the auxiliary classifier.
    head: adds the answer of the ViT's head.
    hidden: width of a hidden layer beside the direct path; 0 for the patent's
      single dense layer.
    bias: initial bias; positive values start by keeping most layers.
    num_candidates: C, masks whose success the value head predicts (0: no head).
  """
  num_layers: int
  num_classes: int
  tokens: str = 'all'
  aux: bool = True
  head: bool = False
  hidden: int = 0
  bias: float = 2.0
  num_candidates: int = 0

  def num_features(self, model):
    """Width F of the token features for a given `ViT`."""
    return model.width * (model.num_tokens if self.tokens == 'all' else 2)

  def setup(self):
    init = nn.initializers.normal(0.01)
    bias = nn.initializers.constant(self.bias)
    self.msa_net = nn.Dense(self.num_layers, kernel_init=init, bias_init=bias)
    self.mlp_net = nn.Dense(self.num_layers, kernel_init=init, bias_init=bias)
    if self.aux:
      self.aux_head = nn.Dense(self.num_classes, kernel_init=init)
    if self.hidden:
      self.hidden_layer = nn.Dense(self.hidden)
    if self.num_candidates:
      self.value_head = nn.Dense(self.num_candidates, kernel_init=init)

  def features(self, z1, stats, head_logits=None):
    """z1 [B, N, D], `Stats` [F] and logits [B, K] for `head` to `Features`.

    Raises:
      ValueError: if `head` is set and there are no logits.
    """
    if self.head and head_logits is None:
      raise ValueError("head=True shows the networks what the ViT's head says "
                       'of z1, and head_logits is None; use learned.observe')
    x = inputs.token_features(z1, self.tokens)
    x = jax.lax.stop_gradient((x - stats.mean) / stats.std)
    aux_logits = self.aux_head(x) if self.aux else None
    x = x * inputs.TOKEN_SCALE
    if self.aux:
      x = jnp.concatenate([x, inputs.difficulty(aux_logits)], axis=-1)
    if self.head:
      x = jnp.concatenate([x, inputs.difficulty(head_logits)], axis=-1)
    if self.hidden:
      x = jnp.concatenate([x, nn.gelu(self.hidden_layer(x))], axis=-1)
    return inputs.Features(x, aux_logits)

  def msa(self, features):
    """Equation 6 before the sigmoid: MSA logits [B, L]."""
    return self.msa_net(features.inputs)

  def mlp(self, features, msa_actions):
    """Equation 9 before the sigmoid: MLP logits [B, L], given a1 [B, L]."""
    x = jnp.concatenate([features.inputs, msa_actions], axis=-1)
    return self.mlp_net(x)

  def value(self, features):
    """Logits [B, C] that the ViT is right under each candidate mask."""
    return self.value_head(features.inputs)

  def __call__(self, z1, stats, head_logits=None):
    features = self.features(z1, stats, head_logits)
    msa = self.msa(features)
    mlp = self.mlp(features, (msa > 0).astype(jnp.float32))
    value = self.value(features) if self.num_candidates else None
    return msa, mlp, value


def init_params(nets, model, key):
  """Initialises the networks.

  Args:
    nets: `PolicyNets`.
    model: the `ViT` that they steer.
    key: PRNG key.

  Returns:
    (parameter tree, `Stats` [F] of mean 0 and deviation 1).
  """
  return _init(nets, nets.num_features(model), (model.num_tokens, model.width),
               key)


# Jitted once for all calls, as the model's own.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(nets, num_features, shape, key):
  stats = inputs.Stats(jnp.zeros(num_features, jnp.float32),
                       jnp.ones(num_features, jnp.float32))
  z1 = jnp.zeros((1, *shape))
  logits = jnp.zeros((1, nets.num_classes))
  return nets.init(key, z1, stats, logits)['params'], stats


def observe(nets, model, params, z1, stats):
  """What the networks see of z1; the gradient stops at z1 and at the ViT.

  The patent shows them z1 alone; the early answers are this library's.

  Args:
    nets: `PolicyNets`.
    model: the `ViT` that they steer.
    params: {'policy': their parameters, 'vit': the ViT's}.
    z1: output of the fixed encoders, [B, N, D].
    stats: `Stats` [F].

  Returns:
    `Features` of B images.
  """
  z1 = jax.lax.stop_gradient(z1)
  logits = None
  if nets.head:  # `inputs.difficulty` stops the gradient of its logits.
    logits = modes.classify(model, params['vit'], z1).total
  return nets.apply({'params': params['policy']}, z1, stats, logits,
                    method='features')


def bounded(logits, bound):
  """Equations 7 and 10: probabilities kept away from 0 and 1 by `bound`.

  Args:
    logits: [B, L].
    bound: λ in [0.5, 1]; 1 leaves sigmoid(logits) as it is.

  Returns:
    s [B, L].
  """
  s = jax.nn.sigmoid(logits)
  return bound * s + (1 - bound) * (1 - s)


def log_likelihood(s, actions):
  """log of equations 5 and 8 per decision: [B, L] from s and 0/1 actions."""
  return (actions * jnp.log(jnp.clip(s, 1e-6))
          + (1 - actions) * jnp.log(jnp.clip(1 - s, 1e-6)))


def entropy(s):
  """Entropy of each decision in nats, [B, L]."""
  s = jnp.clip(s, 1e-6, 1 - 1e-6)
  return -(s * jnp.log(s) + (1 - s) * jnp.log1p(-s))


def sample(nets, params, features, key, *, bound, free):
  """Draws actions (equations 3 and 4), bounded, with encoders freed so far.

  Args:
    nets: `PolicyNets`.
    params: their parameters.
    features: `Features` of B images.
    key: PRNG key.
    bound: λ of `bounded`.
    free: [L], 0 where the curriculum still forces an encoder to run.

  Returns:
    `Actions` [B, L].
  """
  keys = jax.random.split(key)
  def draw(key, logits):
    a = jax.random.bernoulli(key, bounded(logits, bound)).astype(jnp.float32)
    return jnp.where(free > 0, a, 1.)
  msa = draw(keys[0], nets.apply({'params': params}, features, method='msa'))
  mlp_logits = nets.apply({'params': params}, features, msa, method='mlp')
  return Actions(msa, draw(keys[1], mlp_logits))


def greedy(nets, params, features, *, threshold=0.5, free=None):
  """Actions at inference: keep where sigmoid(logit) reaches the threshold.

  Args:
    nets: `PolicyNets`.
    params: their parameters.
    features: `Features` of B images.
    threshold: in (0, 1); higher drops more.
    free: as in `sample`; None frees every encoder.

  Returns:
    `Actions` [B, L].
  """
  def decide(logits):
    a = (jax.nn.sigmoid(logits) >= threshold).astype(jnp.float32)
    return a if free is None else jnp.where(free > 0, a, 1.)
  msa = decide(nets.apply({'params': params}, features, method='msa'))
  mlp = decide(nets.apply({'params': params}, features, msa, method='mlp'))
  return Actions(msa, mlp)


def action_logits(nets, params, features, actions):
  """Logits of both networks given actions [B, L]: `Actions` of logits."""
  msa = nets.apply({'params': params}, features, method='msa')
  mlp = nets.apply({'params': params}, features, actions.msa, method='mlp')
  return Actions(msa, mlp)
