"""The best static sub-networks: what choosing layers per image has to beat."""

import contextlib
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.report import compare
from adavit_jax.train import entry
from adavit_jax.train import loop
from adavit_jax.train import system as system_lib
from adavit_jax.train import writer


def last_k(num_layers):
  """Masks that drop the last k MLP and the last k or k + 1 MSA layers.

  Args:
    num_layers: L.

  Returns:
    `Actions` [2L + 1, L], from all layers to none.
  """
  masks = [fixed.drop(num_layers, (i + 1) // 2, i // 2)
           for i in range(2 * num_layers + 1)]
  return Actions(*map(np.stack, zip(*masks)))


def frontier(macs, accuracy, loss):
  """The masks that are worth running, alone or mixed, for some budget.

  A mixture runs one mask on a share of the images and another one on the rest,
  so it has any accuracy on the line between the two. The corners of the concave
  hull, up to its top, are those whose mixtures nothing else beats within the
  same MACs.

  Args:
    macs: cost of each mask, [C].
    accuracy: of each on held-out images, [C].
    loss: decides between masks of the same cost and accuracy, [C].

  Returns:
    Indices of the corners, the dearest and most accurate first.
  """
  corners = []
  for i in np.lexsort((loss, -np.asarray(accuracy), macs)):
    if corners and macs[i] == macs[corners[-1]]:
      continue
    while len(corners) > 1 and _slope(
        macs, accuracy, corners[-2], corners[-1]) <= _slope(
            macs, accuracy, corners[-2], i):
      corners.pop()
    corners.append(i)
  while len(corners) > 1 and accuracy[corners[-1]] <= accuracy[corners[-2]]:
    corners.pop()
  return corners[::-1]


def _slope(x, y, i, j):
  return (y[j] - y[i]) / (x[j] - x[i])


def at_budget(macs, accuracy, loss, budget, slack):
  """The one mask to tune for a budget, which none may meet exactly.

  Args:
    macs, accuracy, loss: as `frontier` takes them.
    budget: MACs that it may spend at least.
    slack: how much more still counts as the same.

  Returns:
    Index of the most accurate of these; where there is none, of the one that
    spends least above the budget, or else most.
  """
  def rank(i):
    above = macs[i] - budget
    if 0 <= above <= slack:
      return 0, -accuracy[i], loss[i]
    return (1, above, -accuracy[i]) if above > 0 else (2, -above, -accuracy[i])
  return min(range(len(macs)), key=rank)


class Known(NamedTuple):
  """Static masks and what they reach on held-out images.

  Attributes:
    keep: 0/1 actions, [C, 2L].
    macs: [C], as a share of the dense model's.
    accuracy: [C].
    loss: [C].
  """
  keep: np.ndarray
  macs: np.ndarray
  accuracy: np.ndarray
  loss: np.ndarray

  @property
  def score(self):
    """What `frontier` and `at_budget` take."""
    return self.macs, self.accuracy, self.loss


def known(trainer, vit, candidates):
  """All static masks that a run knows of.

  Args:
    trainer: `loop.Trainer` of the run.
    vit: parameters of the ViT.
    candidates: `Actions` [C, L] of `search.candidates`. A chain that adds
      layers to none, greedily, and `last_k` join them: at small budgets a chain
      that drops layers may have lost the best one long before.

  Returns:
    `Known`.

  Raises:
    ValueError: if no images were held out.
  """
  num = trainer.system.model.num_adaptive
  added = entry.static_masks(trainer, vit, forward=True)
  keep = np.unique(np.concatenate(
      [np.asarray(a.keep) for a in (candidates, added, last_k(num))]), axis=0)
  logging.info('comparing %d static masks on %d held-out images', len(keep),
               len(trainer.dataset.holdout))
  rows = []
  with contextlib.closing(
      writer.Progress(len(keep), 'masks', 'static masks')) as progress:
    for k in keep:
      out = trainer.evaluator.given(vit, trainer.dataset.holdout, k)
      rows.append(compare.row(out, trainer.system.plain_cost))
      progress.update(len(rows), len(rows), {})
  return Known(keep, *(np.array([row[key] for row in rows])
                       for key in ('macs_ratio', 'accuracy', 'loss')))


def finetuned(trainer, workdir, actions):
  """The ViT tuned for one mask as the joint phase tunes it for the policy.

  A run of its own under workdir/static, resumable, done once for a mask.

  Args:
    trainer: `loop.Trainer` of a run with a joint phase.
    workdir: its directory.
    actions: `Actions` [L].

  Returns:
    A row; None if a signal stopped the training.
  """
  keep = ''.join(str(int(k)) for k in np.asarray(actions.keep))
  config = trainer.config.copy_and_resolve_references()
  before = config.phases[:config.phases.index('joint')]
  if before:  # Else the joint phase began from another run, and so does this.
    config.init.update(workdir=workdir, phase=before[-1], weights='')
  config.phases = ('static',)
  for field in config.static:
    if field in config.joint:
      config.static[field] = config.joint[field]
  config.static.policy, config.static.keep = 'mask', keep
  logging.info('tuning the static sub-network %s for %d steps', keep,
               config.static.steps)
  directory = os.path.join(workdir, 'static', keep)
  state = loop.Trainer(config, directory, trainer.dataset).train()
  if state is None:
    return None
  out = trainer.evaluator.given(
      system_lib.final_params(state)['vit'], trainer.dataset.test,
      np.asarray(actions.keep))
  return dict(compare.row(out, trainer.system.plain_cost), keep=keep)
