"""What the phases of a model with exits have in common."""


def each(system, outputs, batch):
  """Loss of every exit: a list of [].

  Args:
    system: `StagedSystem`.
    outputs: list of [B, K], normalised.
    batch: `Batch`.
  """
  return [system.task.loss(y, batch.targets) for y in outputs]


def metrics(system, total, outputs, losses, batch, *, first=0):
  """Loss in all, and loss and scores of every exit, by number from `first`."""
  task = system.task
  found = {'loss': total}
  for i, (y, value) in enumerate(zip(outputs, losses), first):
    found[f'loss_{i}'] = value
    score = task.score(task.predict(task.denormalize(y)), batch.labels)
    found.update({f'{k}_{i}': v for k, v in task.metrics(score).items()})
  return found
