"""Losses and metrics shared by the phases that train exits."""

from adavit_jax.runtime import stages
from adavit_jax.train import losses
from adavit_jax.train import ranges
from adavit_jax.train import training_pass

DISTILL_DEFAULTS = dict(
    distill=0.0,  # weight of the last exit's answers in the loss of the others
    temperature=2.0)  # of their softmax
DISTILL_RANGES = dict(distill=ranges.SHARE, temperature=ranges.POSITIVE)


def each(system, outputs, batch):
  """Returns the loss of every exit, a list of [].

  Args:
    system: `System`.
    outputs: list of [B, K], normalized.
    batch: `Batch`.
  """
  return [system.task.loss(y, batch.targets) for y in outputs]


def distilled(system, c, outputs, last, batch):
  """Returns the loss of exits that also learn from the last one, a list of [].

  Args:
    system: `System`.
    c: config with distill and temperature, see `DISTILL_DEFAULTS`.
    outputs: list of [B, K], the logits of the exits that learn.
    last: [B, K], the logits of the last exit; no gradient flows through them.
    batch: `Batch`.
  """
  values = each(system, outputs, batch)
  if not c.distill:
    return values
  return [(1 - c.distill) * value + c.distill * losses.distillation(
              y, last, temperature=c.temperature)
          for value, y in zip(values, outputs)]


def check_distill(name, system):
  """Raises a ValueError if a phase would distil the numbers of a regression."""
  if system.config[name].distill and system.target is not None:
    raise ValueError(f'{name}.distill={system.config[name].distill} is for '
                     f'classes, but the labels of {system.config.data.name!r} '
                     f'are numbers; set {name}.distill=0')


def metrics(system, total, outputs, losses, batch, *, first=0):
  """Returns the total loss, and the loss and metrics of each exit.

  Exits are numbered from `first`.
  """
  task = system.task
  values = {'loss': total}
  for i, (y, value) in enumerate(zip(outputs, losses), first):
    values[f'loss_{i}'] = value
    score = task.score(task.predict(task.denormalize(y)), batch.labels)
    values.update({f'{k}_{i}': v for k, v in task.metrics(score).items()})
  return values


def early(system, logits, batch):
  """Returns the weighted loss of the backbone's own early exits, [].

  Phases that train the backbone through its last exit add this loss, so that
  earlier exits keep learning.

  Args:
    system: `System`.
    logits: list of [B, K], the logits of these exits.
    batch: `Batch`.
  """
  weights = [w for e, w in zip(system.exits, system.weights) if not e.head]
  return sum(w * x for w, x in zip(weights, each(system, logits, batch)))


def outputs(system, params, batch, key, progress=None, **options):
  """Returns the outputs of all exits in training, see `stages.training`.

  Args:
    system: `System`.
    params: groups.
    batch: `Batch`.
    key: PRNG key.
    progress: see `Context`.
    **options: of `stages.training`.
  """
  return stages.training(
      system.model, params, batch.images,
      training_pass.context(params, key, progress), **options, **system.scan)
