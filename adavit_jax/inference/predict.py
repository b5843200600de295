"""The programs of a `Classifier`, as pure functions to be jitted."""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.runtime import modes


def predict(system, actions, params, images, valid, number):
  """Classifies images, by the learned policy or by given actions.

  Args:
    system: `System`.
    actions: `Actions` [L1], [L2] of NumPy arrays, or None for the learned
      policy.
    params: groups, folded.
    images: uint8 [B, S, S, C].
    valid: [B] bool, False for padding.
    number: the policy's threshold or price, [].

  Returns:
    (logits [B, K], `Actions` [B, L1], [B, L2]).
  """
  images = system.normalize(images)
  z1 = system.before_policy(params, images)
  if actions is not None:
    return _after(system, params, z1, images, actions, 'static')
  return _per_image(system, params, z1, images, valid, system.greedy(
      params, z1, images, number))


def predict_stochastic(system, params, images, valid, final, key, start):
  """Classifies images under a stochastic policy.

  Args:
    system: `System`.
    params: groups of the model, folded.
    images: uint8 [B, S, S, C].
    valid: [B] bool, False for padding.
    final: survival probability of the last layer, [].
    key: PRNG key.
    start: place of the first image among all images of the key, [].

  Returns:
    As `predict`.
  """
  actions = fixed.stochastic_rows(
      key, start + jnp.arange(images.shape[0]), plan.num_layers(system.model),
      final=final)
  images = system.normalize(images)
  z1 = system.before_policy(params, images)
  return _per_image(system, params, z1, images, valid, actions)


def _per_image(system, params, z1, images, valid, actions):
  actions = Actions(*(a * valid[:, None] for a in actions))
  mode = 'cond' if images.shape[0] == 1 else 'compact'
  return _after(system, params, z1, images, actions, mode)


def _after(system, params, z1, images, actions, mode):
  logits = modes.after_policy(
      system.model, params, z1, actions, mode, images=images).total
  return logits, Actions(*(
      jnp.broadcast_to(a, (images.shape[0], a.shape[-1])) for a in actions))


def decisions(system, params, images, numbers):
  """Decides under each of T numbers, without running the layers.

  Args:
    system: `System`.
    params: groups, folded, with the policy's.
    images: uint8 [B, S, S, C].
    numbers: thresholds or prices, [T].

  Returns:
    [B, T, L1 + L2] of 0 and 1, MSA then MLP.
  """
  images = system.normalize(images)
  z1 = system.before_policy(params, images)
  return jax.vmap(lambda number: system.greedy(
      params, z1, images, number).keep, out_axes=1)(numbers)
