"""The two policy networks and the likelihood of what they decide.

Equations are those of US 12,394,190. The patent prints the likelihoods (5) and
(8) with the kept layers alone; the product here has the factor 1 - s of each
dropped layer too, without which it is no distribution.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.params import check_key
from adavit_jax.policies import observation
from adavit_jax.runtime import modes


class PolicyNets(nn.Module):
  """One dense layer from z1 to MSA actions, one from (z1, a1) to MLP actions.

  Two early answers may show both networks how hard an image is, by their
  log-probabilities, largest probability, entropy and margin beside z1: with
  `aux` that of a linear classifier on z1, which tells how hard the image is for
  any model; with `head` what this model would say if it dropped every layer: of
  a ViT, its own head on z1. Gradients stop at z1.

  Attributes:
    num_layers: (L1, L2), MSA and MLP layers that may be dropped.
    num_classes: K.
    tokens: 'all' (flattened) or 'pooled' (class token, mean of the others).
    aux: adds the auxiliary classifier.
    head: adds what the model says when every layer is dropped.
    hidden: width of a hidden layer beside the direct path; 0 for the patent's
      single dense layer.
    bias: initial bias; positive values start by keeping most layers.
    num_candidates: C, masks whose success the value head predicts (0: no head).
  """
  num_layers: tuple[int, int]
  num_classes: int
  tokens: str = 'all'
  aux: bool = True
  head: bool = False
  hidden: int = 0
  bias: float = 2.0
  num_candidates: int = 0

  def num_features(self, at):
    """Width F of the token features at a place with `Tokens` `at`."""
    return observation.num_features(at, self.tokens)

  def setup(self):
    init = nn.initializers.normal(0.01)
    bias = nn.initializers.constant(self.bias)
    self.msa_net, self.mlp_net = (
        nn.Dense(num, kernel_init=init, bias_init=bias, name=name)
        for num, name in zip(self.num_layers, ('msa_net', 'mlp_net')))
    if self.aux:
      self.aux_head = nn.Dense(self.num_classes, kernel_init=init)
    if self.hidden:
      self.hidden_layer = nn.Dense(self.hidden)
    if self.num_candidates:
      self.value_head = nn.Dense(self.num_candidates, kernel_init=init)

  def features(self, x, stats, head_logits=None):
    """What both networks see.

    Args:
      x: `inputs.token_features` of z1, [B, F].
      stats: `Stats` [F].
      head_logits: [B, K] for `head`.

    Returns:
      `Features`.

    Raises:
      ValueError: if `head` is set and there are no logits.
    """
    if self.head and head_logits is None:
      raise ValueError("head=True shows the networks what the model's head "
                       'says of z1, and head_logits is None; use '
                       'learned.observe')
    x = jax.lax.stop_gradient((x - stats.mean) / stats.std)
    aux_logits = self.aux_head(x) if self.aux else None
    x = x * observation.TOKEN_SCALE
    if self.aux:
      x = jnp.concatenate([x, observation.difficulty(aux_logits)], axis=-1)
    if self.head:
      x = jnp.concatenate([x, observation.difficulty(head_logits)], axis=-1)
    if self.hidden:
      x = jnp.concatenate([x, nn.gelu(self.hidden_layer(x))], axis=-1)
    return observation.Features(x, aux_logits)

  def msa(self, features):
    """Equation 6 before the sigmoid: MSA logits [B, L1]."""
    return self.msa_net(features.inputs)

  def mlp(self, features, msa_actions):
    """Equation 9 before the sigmoid: MLP logits [B, L2], given a1 [B, L1]."""
    x = jnp.concatenate([features.inputs, msa_actions], axis=-1)
    return self.mlp_net(x)

  def value(self, features):
    """Logits [B, C] that the model is right under each candidate mask."""
    return self.value_head(features.inputs)

  def __call__(self, x, stats, head_logits=None):
    """All networks once, to initialise them; arguments as in `features`."""
    features = self.features(x, stats, head_logits)
    msa = self.msa(features)
    mlp = self.mlp(features, (msa > 0).astype(jnp.float32))
    value = self.value(features) if self.num_candidates else None
    return msa, mlp, value


def init_params(nets, model, key):
  """Initialises the networks.

  Args:
    nets: `PolicyNets`.
    model: the `Backbone` that they steer.
    key: PRNG key.

  Returns:
    (parameter tree, `Stats` [F] of mean 0 and deviation 1).

  Raises:
    ValueError: if `key` is not a single PRNG key.
  """
  check_key(key)
  return _init(
      nets, nets.num_features(plan.tokens_at(model, model.num_fixed)), key)


# Jitted once for all calls, as the model's own.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(nets, num_features, key):
  stats = observation.Stats(jnp.zeros(num_features, jnp.float32),
                       jnp.ones(num_features, jnp.float32))
  x = jnp.zeros((1, num_features))
  logits = jnp.zeros((1, nets.num_classes))
  return nets.init(key, x, stats, logits)['params'], stats


def token_features(nets, model, z1):
  """`inputs.token_features` of z1, the activations where the policy decides."""
  at = plan.tokens_at(model, model.num_fixed)
  return observation.token_features(
      model.tokens(z1, at), nets.tokens, at.prefix)


def observe(nets, model, params, z1, images=None):
  """What the networks see of z1; the gradient stops at z1 and at the model.

  The patent shows them z1 alone; the early answers are this library's.

  Args:
    nets: `PolicyNets`.
    model: the `Backbone` that they steer.
    params: groups: 'policy' and 'policy_stats', for `head` also 'backbone',
      folded.
    z1: activations where the policy decides.
    images: [B, S, S, C], normalised; for `head`, where `plan.rereads_images`.

  Returns:
    `Features` of B images.
  """
  z1 = jax.lax.stop_gradient(z1)
  logits = None
  if nets.head:  # `inputs.difficulty` stops the gradient of its logits.
    logits = modes.without_layers(model, params, z1, images).total
  return nets.apply(
      {'params': params['policy']}, token_features(nets, model, z1),
      params['policy_stats'], logits, method='features')


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


def sample(nets, params, features, key, *, bound, free=None):
  """Draws actions (equations 3 and 4), bounded, with layers freed so far.

  Args:
    nets: `PolicyNets`.
    params: their parameters.
    features: `Features` of B images.
    key: PRNG key.
    bound: λ of `bounded`.
    free: `Actions` [L1], [L2], 0 where the curriculum still forces a layer to
      run; None frees every layer.

  Returns:
    `Actions` [B, L1], [B, L2].
  """
  keys = jax.random.split(key)
  def draw(key, logits, free):
    a = jax.random.bernoulli(key, bounded(logits, bound)).astype(jnp.float32)
    return a if free is None else jnp.where(free > 0, a, 1.)
  free = free or Actions(None, None)
  msa = draw(keys[0], nets.apply({'params': params}, features, method='msa'),
             free.msa)
  mlp_logits = nets.apply({'params': params}, features, msa, method='mlp')
  return Actions(msa, draw(keys[1], mlp_logits, free.mlp))


def greedy(nets, params, features, *, threshold=0.5, free=None):
  """Actions at inference: keep where sigmoid(logit) reaches the threshold.

  Args:
    nets: `PolicyNets`.
    params: their parameters.
    features: `Features` of B images.
    threshold: in (0, 1); higher drops more.
    free: as in `sample`.

  Returns:
    `Actions` [B, L1], [B, L2].
  """
  def decide(logits, free):
    a = (jax.nn.sigmoid(logits) >= threshold).astype(jnp.float32)
    return a if free is None else jnp.where(free > 0, a, 1.)
  free = free or Actions(None, None)
  msa = decide(nets.apply({'params': params}, features, method='msa'), free.msa)
  mlp = decide(nets.apply({'params': params}, features, msa, method='mlp'),
               free.mlp)
  return Actions(msa, mlp)


def action_logits(nets, params, features, actions):
  """Logits of both networks given `Actions` [B, L1], [B, L2]: the same."""
  msa = nets.apply({'params': params}, features, method='msa')
  mlp = nets.apply({'params': params}, features, actions.msa, method='mlp')
  return Actions(msa, mlp)
