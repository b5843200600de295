"""What the phases that train exits have in common."""

from adavit_jax.runtime import stages


def each(system, outputs, batch):
  """Loss of every exit: a list of [].

  Args:
    system: `System`.
    outputs: list of [B, K], normalised.
    batch: `Batch`.
  """
  return [system.task.loss(y, batch.targets) for y in outputs]


def metrics(system, total, outputs, losses, batch, *, first=0):
  """Loss in all, and loss and scores of every exit, by number from `first`."""
  task = system.task
  values = {'loss': total}
  for i, (y, value) in enumerate(zip(outputs, losses), first):
    values[f'loss_{i}'] = value
    score = task.score(task.predict(task.denormalize(y)), batch.labels)
    values.update({f'{k}_{i}': v for k, v in task.metrics(score).items()})
  return values


def early(system, logits, batch):
  """Weighted loss of the backbone's own early exits, [].

  Phases that train the backbone by its last exit add it, so that the exits
  before it keep learning.

  Args:
    system: `System`.
    logits: of these exits, a list of [B, K].
    batch: `Batch`.
  """
  weights = [w for e, w in zip(system.exits, system.weights) if not e.head]
  return sum(w * x for w, x in zip(weights, each(system, logits, batch)))


def outputs(system, params, batch, key, **options):
  """Every exit of a backbone that learns: see `stages.training`."""
  return stages.training(
      system.model, params, batch.images, system.context(params, key),
      **options, **system.scan)
