"""Phase 4: fine-tunes policy networks and model together (figures 3B and 6)."""

import jax
import jax.numpy as jnp

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import learned
from adavit_jax.policies import value as value_lib
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train import training_pass
from adavit_jax.train.phases import dense
from adavit_jax.train.phases import exit_losses
from adavit_jax.train.phases import policy as policy_phase
from adavit_jax.train.phases.phase import OPTIMIZER
from adavit_jax.train.phases.phase import Phase


def loss(system, params, state, batch, key, done):
  """Returns the loss of the joint phase; see `Phase.loss`.

  The model's gradient comes from one row per image: with sampled actions for a
  fraction `sampled` of the images, with greedy actions for the others.
  REINFORCE adds rows without gradient. Both losses are means over images.

  If a value policy decides, the greedy actions are its choice at the price that
  meets the target in the batch, and the sampled ones are those of a random
  candidate mask. There is no REINFORCE then.
  """
  c, nets = system.config.joint, system.nets
  rl_key, sample_key, coin_key, key = jax.random.split(key, 4)
  start = training_pass.begin(system, params, batch.images, key)
  frozen = system.frozen(params)
  # Without batch statistics, z1 in training equals z1 at inference.
  z1 = (start.x if not start.ctx.stats
        else system.before_policy(frozen, batch.images))
  features = system.features({**frozen, 'policy': params['policy']}, z1,
                             batch.images)
  if nets.decide == 'value':
    rl, updates = 0., {}
    drawn, greedy, metrics = _by_value(
        system, frozen['value'], features, sample_key)
  else:
    policy = params['policy']
    rl, (metrics, updates) = policy_phase.policy_gradient(
        system, c, {**frozen, 'policy': policy}, z1, features, state.log_price,
        batch, rl_key, done / c.steps)
    drawn = learned.sample(nets, policy, features, sample_key, bound=c.bound)
    greedy = system.decide(policy, features)
  coin = jax.random.bernoulli(coin_key, c.sampled, (len(batch.labels), 1))
  actions = Actions(*(jnp.where(coin, a, b) for a, b in zip(drawn, greedy)))
  path, (path_metrics, path_updates) = path_loss(
      system, c, params, start, state.teacher, batch,
      jax.lax.stop_gradient(actions))
  return rl + path, ({**metrics, **path_metrics}, {**updates, **path_updates})


def _by_value(system, value, features, key):
  """Returns random and chosen `Actions` of a value policy, and metrics."""
  ratios = system.cost.ratio(value.masks)
  price = value_lib.solve_price(
      value_lib.predict(value, features.fixed), ratios,
      system.config.mac_target)
  chosen = system.by_value(value, features, price)
  drawn = jax.random.randint(key, chosen.msa.shape[:1], 0, len(ratios))
  metrics = {'price': price, **policy_phase.greedy_metrics(chosen, system.cost)}
  return Actions(*(a[drawn] for a in value.masks)), chosen, metrics


def path_loss(system, c, params, start, teacher, batch, actions):
  """Returns cross-entropy and distillation loss under actions (figure 3B).

  The logits to learn from are those of the dense teacher, unless the batch has
  those of another model.

  Args:
    system: `System`.
    c: config of the phase: distill, temperature, hard_distill, representation.
    params: groups of parameters.
    start: `training_pass.begin` of the batch.
    teacher: groups of the dense teacher model.
    batch: `Batch`.
    actions: `Actions` [B, L1], [B, L2] or [L1], [L2].

  Returns:
    (loss [], (metrics, updates)).
  """
  out = training_pass.finish(system, params, start, batch.images, actions)
  logits = out.logits
  # Without distillation, a distillation head learns from the labels.
  ce = (losses.class_cross_entropy(logits, batch.targets) if c.distill else
        losses.head_cross_entropy(logits, batch.targets))
  metrics = {'loss': ce, 'accuracy': dense.accuracy(logits, batch)}
  total, taught = ce, batch.taught
  if c.representation or c.distill and taught is None:
    teacher = system.fold(teacher)
    teacher_z1 = system.before_policy(teacher, batch.images)
  if c.distill:
    if taught is None:
      every = fixed.all_layers(plan.num_layers(system.model))
      taught = system.classify(teacher, teacher_z1, batch.images, every).total
    distill = losses.head_distillation(logits, taught, c)
    total = (1 - c.distill) * ce + c.distill * distill
    metrics['distill_loss'] = distill
  if c.representation:
    distance = losses.representation(
        *map(system.tokens, (start.x, teacher_z1)))
    total += c.representation * distance
    metrics['representation_loss'] = distance
  total += exit_losses.early(system, out.early, batch)
  return total, (metrics, training_pass.updates(out.stats))


def scale_policy(system, changes, done):
  """Scales the policy's updates by `policy_lr_factor`."""
  del done
  factor = system.config.joint.policy_lr_factor
  return {**changes, 'policy': jax.tree.map(
      lambda u: factor * u, changes['policy'])}


PATH_DEFAULTS = dict(distill=0.5, temperature=2.0, hard_distill=False,
                     representation=0.0)
PATH_RANGES = dict(distill=ranges.SHARE, temperature=ranges.POSITIVE,
                   representation=ranges.WEIGHT)


def check_heads(name, system):
  """Raises a ValueError if a phase would not train the class head."""
  if system.config[name].distill == 1 and system.two_heads:
    raise ValueError(f'{name}.distill=1 trains only the distillation head and '
                     f'not the class head of {system.config.model.name!r}; set '
                     f'it below 1')


PHASE = Phase(
    loss, trains=('backbone', 'policy'), teacher=True, taught=True,
    decides='policy', check=lambda system: policy_phase.check('joint', system),
    # No weight decay, as in the policy phase; `policy_lr_factor` would multiply
    # it too.
    adjust=scale_policy, undecayed=('policy',),
    defaults=dict(OPTIMIZER, learning_rate=5e-4, policy_lr_factor=2.0,
                  sampled=0.3, **PATH_DEFAULTS,
                  **policy_phase.RL_DEFAULTS),
    ranges=dict(policy_phase.RL_RANGES, **PATH_RANGES,
                policy_lr_factor=ranges.WEIGHT, sampled=ranges.SHARE))
