"""Phase 4: policies and transformer tuned together (figures 3B and 6)."""

import jax
import jax.numpy as jnp

from adavit_jax.models.actions import Actions
from adavit_jax.policies import learned
from adavit_jax.runtime import modes
from adavit_jax.train import losses
from adavit_jax.train.phases import dense
from adavit_jax.train.phases.policy import policy_gradient

TRAINS = ('vit', 'policy')


def loss(system, params, state, batch, key, progress):
  """Loss of the joint phase; arguments and result as in `dense.loss`.

  One row an image carries the ViT's gradient: the greedy action's, or a
  sampled one for a share `sampled` of the images. REINFORCE adds rows without
  gradient. Both losses are means over images.
  """
  del progress
  c, nets, num = system.config.joint, system.nets, system.model.num_adaptive
  vit, policy = params['vit'], params['policy']
  rl_key, sample_key, coin_key = jax.random.split(key, 3)
  z1 = modes.fixed(system.model, vit, batch.images)
  features = system.features(params, z1, state.stats)
  rl, (metrics, updates) = policy_gradient(
      system, c, policy, vit, z1, features, state.log_price, batch, rl_key,
      jnp.ones(num))

  drawn = learned.sample(nets, policy, features, sample_key, bound=c.bound,
                         free=jnp.ones(num))
  greedy = learned.greedy(nets, policy, features)
  coin = jax.random.bernoulli(coin_key, c.sampled, (z1.shape[0], 1))
  actions = Actions(*(jnp.where(coin, a, b) for a, b in zip(drawn, greedy)))
  path, path_metrics = path_loss(
      system, c, vit, z1, state.teacher, batch, jax.lax.stop_gradient(actions))
  return rl + path, ({**metrics, **path_metrics}, updates)


def path_loss(system, c, vit, z1, teacher, batch, actions):
  """Cross-entropy and distillation of the ViT under given actions (figure 3B).

  Args:
    system: `System`.
    c: config of the phase: distill, temperature, hard_distill, representation.
    vit: parameters of the ViT.
    z1: its fixed encoders' output, [B, N, D].
    teacher: parameters of the dense ViT that teaches.
    batch: `Batch`.
    actions: `Actions` [B, L] or [L].

  Returns:
    (loss [], metrics).
  """
  logits = system.classify(vit, z1, actions)
  # A distillation head that no teacher teaches learns from the labels.
  ce = (losses.cross_entropy(logits.cls, batch.targets) if c.distill else
        losses.head_cross_entropy(logits, batch.targets))
  metrics = {'loss': ce, 'accuracy': dense.accuracy(logits, batch)}
  total = ce
  if c.distill or c.representation:
    teacher_z1 = modes.fixed(system.model, teacher, batch.images)
  if c.distill:
    ones = jnp.ones(system.model.num_adaptive)
    dense_logits = system.classify(teacher, teacher_z1, Actions(ones, ones))
    if logits.dist is None:
      student, taught = logits.total, dense_logits.total
    else:  # One head learns what two say together: their mean, not their sum.
      student, taught = logits.dist, dense_logits.total / 2
    distill = losses.distillation(student, taught, hard=c.hard_distill,
                                  temperature=c.temperature)
    total = (1 - c.distill) * ce + c.distill * distill
    metrics['distill_loss'] = distill
  if c.representation:
    distance = losses.representation(z1, teacher_z1)
    total += c.representation * distance
    metrics['representation_loss'] = distance
  return total, metrics
