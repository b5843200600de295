"""The two policy networks and the likelihood of their actions.

Equation numbers refer to US 12,394,190. The patent prints the likelihoods (5)
and (8) with the factors of the kept layers only. Here the product also has the
factor 1 - s of each dropped layer; otherwise it would not be a distribution.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.models.backbone import Tokens
from adavit_jax.models.params import check_key
from adavit_jax.policies import mask_search
from adavit_jax.policies import observation
from adavit_jax.policies import value as value_lib
from adavit_jax.runtime import modes


class PolicyNets(nn.Module):
  """One dense layer from z1 to MSA actions, one from (z1, a1) to MLP actions.

  Two early predictions can be added to the inputs of both networks, as a
  measure of how hard an image is: log-probabilities, largest probability,
  entropy and margin. `aux` adds those of a linear classifier on z1, which are
  independent of the model. `head` adds those of this model with every layer
  dropped; for a ViT, of its head on z1. Gradients stop at z1.

  Attributes:
    num_layers: (L1, L2), number of droppable MSA and MLP layers.
    num_classes: K.
    tokens: 'all' (flattened) or 'pooled' (class token, mean of the others).
    aux: whether to add the predictions of an auxiliary classifier.
    head: whether to add the model's predictions with every layer dropped.
    hidden: width of a hidden layer in parallel to the direct path; 0 for the
      single dense layer of the patent.
    conv: channels of a small convolutional network in the MSA network, in
      parallel to the direct path; 0 for none. It has two 3 x 3 convolutions,
      the second with stride 2, and the mean over the grid. Needs tokens='all'.
    at: `Tokens` where the policy decides, required with `conv`.
    bias: initial bias; with positive values most layers are kept at first.
    decide: what chooses the layers at inference, 'networks' or 'value', a
      linear value policy on the same observations, see `value`.
  """
  num_layers: tuple[int, int]
  num_classes: int
  tokens: str = 'all'
  aux: bool = True
  head: bool = False
  hidden: int = 0
  conv: int = 0
  at: Tokens | None = None
  bias: float = 2.0
  decide: str = 'networks'

  def num_features(self, at):
    """F, number of token features at a place with `Tokens` `at`."""
    return observation.num_features(at, self.tokens)

  def num_fixed_features(self, at):
    """F'', number of inputs of the value policy at a place."""
    return self.num_features(at) + (self.num_classes + 3 if self.head else 0)

  @property
  def num_candidates(self):
    """C, number of masks that the value policy chooses from."""
    return mask_search.NUM_CHAINS * (sum(self.num_layers) + 1)

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
    if self.conv:
      self.conv_1 = nn.Conv(self.conv, (3, 3))
      self.conv_2 = nn.Conv(self.conv, (3, 3), strides=2)

  def features(self, x, stats, head_logits=None):
    """Computes the input of both networks.

    Args:
      x: `observation.token_features` of z1, [B, F].
      stats: `Stats` [F].
      head_logits: [B, K], required if `head`.

    Returns:
      `Features`.

    Raises:
      ValueError: if `head` is set and `head_logits` is None.
    """
    if self.head and head_logits is None:
      raise ValueError('head=True needs the logits of the model with every '
                       'layer dropped, but head_logits is None; use '
                       'learned.observe')
    x = jax.lax.stop_gradient((x - stats.mean) / stats.std)
    aux_logits = self.aux_head(x) if self.aux else None
    tokens = x * observation.TOKEN_SCALE
    join = lambda *parts: jnp.concatenate(
        [part for part in parts if part is not None], axis=-1)
    head = observation.difficulty(head_logits) if self.head else None
    aux = observation.difficulty(aux_logits) if self.aux else None
    x = join(tokens, aux, head)
    if self.hidden:
      x = join(x, nn.gelu(self.hidden_layer(x)))
    return observation.Features(join(tokens, head), x, aux_logits)

  def msa(self, features):
    """MSA logits [B, L1] (equation 6 before the sigmoid)."""
    x = features.inputs
    if self.conv:
      x = jnp.concatenate([x, self._convolved(x)], axis=-1)
    return self.msa_net(x)

  def _convolved(self, inputs):
    """The convolutional network on the token features of inputs, [B, conv]."""
    at, (rows, columns) = self.at, self.at.grid
    patches = inputs[:, at.prefix * at.width:at.num * at.width]
    x = patches.reshape(-1, rows, columns, at.width)
    return nn.gelu(self.conv_2(nn.gelu(self.conv_1(x)))).mean((1, 2))

  def mlp(self, features, msa_actions):
    """MLP logits [B, L2] for a1 [B, L1] (equation 9 before the sigmoid)."""
    x = jnp.concatenate([features.inputs, msa_actions], axis=-1)
    return self.mlp_net(x)

  def __call__(self, x, stats, head_logits=None):
    """Runs all networks to initialize them; arguments as in `features`."""
    features = self.features(x, stats, head_logits)
    msa = self.msa(features)
    return msa, self.mlp(features, (msa > 0).astype(jnp.float32))


def init_params(nets, model, key):
  """Initializes the networks.

  Args:
    nets: `PolicyNets`.
    model: the `Backbone` whose layers they drop.
    key: PRNG key.

  Returns:
    The groups 'policy', 'policy_stats', `Stats` [F] of mean 0 and standard
    deviation 1, and 'value', a `Value` before its fit.

  Raises:
    ValueError: if `key` is not a single PRNG key.
  """
  check_key(key)
  return _init(nets, plan.tokens_at(model, model.num_fixed), key)


# Jitted, so that later calls do not trace it again.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(nets, at, key):
  num_features = nets.num_features(at)
  stats = observation.Stats(jnp.zeros(num_features, jnp.float32),
                            jnp.ones(num_features, jnp.float32))
  x = jnp.zeros((1, num_features))
  logits = jnp.zeros((1, nets.num_classes))
  return dict(
      policy=nets.init(key, x, stats, logits)['params'], policy_stats=stats,
      value=value_lib.new(nets.num_fixed_features(at), nets.num_candidates,
                          nets.num_layers))


def token_features(nets, model, z1):
  """`observation.token_features` of z1, the activations at the policy."""
  at = plan.tokens_at(model, model.num_fixed)
  return observation.token_features(
      model.tokens(z1, at), nets.tokens, at.prefix)


def observe(nets, model, params, z1, images=None):
  """Computes the input of the networks; gradients stop at z1 and the model.

  In the patent the networks read z1 only; early predictions are an addition of
  this library.

  Args:
    nets: `PolicyNets`.
    model: the `Backbone` whose layers they drop.
    params: parameter groups 'policy' and 'policy_stats'; with `head` also
      'backbone', folded.
    z1: activations where the policy decides.
    images: [B, S, S, C], normalized; required with `head` if
      `plan.rereads_images`.

  Returns:
    `Features` of B images.
  """
  z1 = jax.lax.stop_gradient(z1)
  logits = None
  if nets.head:  # `observation.difficulty` stops the gradient at the logits.
    logits = modes.without_layers(model, params, z1, images).total
  return nets.apply(
      {'params': params['policy']}, token_features(nets, model, z1),
      params['policy_stats'], logits, method='features')


def bounded(logits, bound):
  """Keep probabilities, bounded away from 0 and 1 (equations 7 and 10).

  Args:
    logits: [B, L].
    bound: λ in [0, 1]; 1 returns sigmoid(logits). At 0.5 every probability is
      0.5, whatever the logits. Below 0.5 the probabilities are reversed: a
      higher logit makes it less likely that the layer is kept, while `greedy`
      still keeps it.

  Returns:
    s [B, L].
  """
  s = jax.nn.sigmoid(logits)
  return bound * s + (1 - bound) * (1 - s)


def log_likelihood(s, actions):
  """Log of equations 5 and 8 per decision, [B, L], from s and 0/1 actions."""
  return (actions * jnp.log(jnp.clip(s, 1e-6))
          + (1 - actions) * jnp.log(jnp.clip(1 - s, 1e-6)))


def entropy(s):
  """Entropy of each decision s in nats, [B, L]."""
  s = jnp.clip(s, 1e-6, 1 - 1e-6)
  return -(s * jnp.log(s) + (1 - s) * jnp.log1p(-s))


def sample(nets, params, features, key, *, bound, free=None):
  """Samples actions from bounded probabilities (equations 3 and 4).

  Args:
    nets: `PolicyNets`.
    params: parameters of the networks.
    features: `Features` of B images.
    key: PRNG key.
    bound: λ of `bounded`.
    free: `Actions` [L1], [L2], 0 for layers that the curriculum forces to run;
      None for no such layers.

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
  """Actions at inference: keeps layers where sigmoid(logit) >= threshold.

  Args:
    nets: `PolicyNets`.
    params: parameters of the networks.
    features: `Features` of B images.
    threshold: in (0, 1); higher values drop more layers;
      `knob.calibrate` finds one for a budget.
    free: see `sample`.

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


def shifted(params, shift):
  """Returns the parameters of the networks with `shift` [] added to all logits.
  """
  move = lambda net: {**net, 'bias': net['bias'] + shift}
  return {**params, 'msa_net': move(params['msa_net']),
          'mlp_net': move(params['mlp_net'])}


def action_logits(nets, params, features, actions):
  """Logits of both networks for `Actions` [B, L1], [B, L2], as `Actions`."""
  msa = nets.apply({'params': params}, features, method='msa')
  mlp = nets.apply({'params': params}, features, actions.msa, method='mlp')
  return Actions(msa, mlp)
