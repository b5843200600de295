"""The best static sub-networks: what choosing layers per image has to beat."""

import contextlib
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.report import compare
from adavit_jax.runs import loop
from adavit_jax.runs import phase_start
from adavit_jax.runs import writer
from adavit_jax.train import state as state_lib


def last_k(num_layers):
  """Masks that drop the last layers, MSA and MLP in turn, MSA first.

  Args:
    num_layers: (L1, L2). Where one kind has run out, the other goes on.

  Returns:
    `Actions` [L1 + L2 + 1, L1], [L1 + L2 + 1, L2], from all layers to none.
  """
  total, (num_msa, num_mlp) = sum(num_layers), num_layers
  masks = []
  for i in range(total + 1):
    msa = min(max((i + 1) // 2, i - num_mlp), num_msa)
    masks.append(fixed.drop(num_layers, msa, i - msa))
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
    macs, accuracy, loss: see `frontier`.
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
    actions: `Actions` [C, L1], [C, L2].
    macs: [C], as a share of the dense model's.
    accuracy: [C].
    loss: [C].
  """
  actions: Actions
  macs: np.ndarray
  accuracy: np.ndarray
  loss: np.ndarray

  @property
  def score(self):
    """The arguments of `frontier` and `at_budget`."""
    return self.macs, self.accuracy, self.loss

  def mask(self, i):
    """`Actions` [L1], [L2] of one of them."""
    return Actions(*(a[i] for a in self.actions))


def known(trainer, params, candidates):
  """All static masks that a run knows of.

  Args:
    trainer: `loop.Trainer` of the run.
    params: groups.
    candidates: `Actions` [C, L1], [C, L2] of `search.candidates`. A chain that
      adds layers to none, greedily, and `last_k` join them: at small budgets a
      chain that drops layers may have lost the best one long before.

  Returns:
    `Known`.

  Raises:
    ValueError: if no images were held out.
  """
  num_layers = plan.num_layers(trainer.system.model)
  added = phase_start.static_masks(trainer, params, forward=True)
  keep = np.unique(np.concatenate(
      [np.asarray(a.keep) for a in (candidates, added, last_k(num_layers))]),
                   axis=0)
  logging.info('comparing %d static masks on %d held-out images', len(keep),
               len(trainer.dataset.holdout))
  rows = []
  with contextlib.closing(
      writer.Progress(len(keep), 'masks', 'static masks')) as progress:
    for k in keep:
      out = trainer.evaluator.with_actions(
          params, trainer.dataset.holdout, Actions.from_keep(k, num_layers))
      rows.append(compare.row(out, trainer.system.plain_cost))
      progress.update(len(rows), len(rows), {})
  return Known(Actions.from_keep(keep, num_layers), *(
      np.array([row[key] for row in rows])
      for key in ('macs_ratio', 'accuracy', 'loss')))


def finetuned(trainer, workdir, actions):
  """The model tuned for one mask as the joint phase tunes it for the policy.

  A run of its own under workdir/static, resumable, done once for a mask.

  Args:
    trainer: `loop.Trainer` of a run with a joint phase.
    workdir: its directory.
    actions: `Actions` [L1], [L2].

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
  out = trainer.evaluator.with_actions(
      state_lib.final_params(state), trainer.dataset.test, actions)
  return dict(compare.row(out, trainer.system.plain_cost), keep=keep)
