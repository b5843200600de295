"""The best static sub-networks, the baseline of an adaptive policy."""

import os
from typing import NamedTuple

from absl import logging
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.report import rows as rows_lib
from adavit_jax.runs import loop
from adavit_jax.runs import phase_start
from adavit_jax.train import state as state_lib


def last_k(num_layers):
  """Returns masks that drop the last layers, MSA and MLP in turn, MSA first.

  Args:
    num_layers: (L1, L2). When one kind is used up, only the other is dropped.

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
  """Returns the masks on the concave hull of accuracy over MACs.

  A mixture runs one mask on a share of the images and another mask on the rest,
  so its accuracy is on the line between the two. Nothing beats the mixtures of
  the hull's corners, up to its maximum, within the same MACs.

  Args:
    macs: MACs of each mask, [C].
    accuracy: accuracy of each mask on held-out images, [C].
    loss: breaks ties of MACs and accuracy, [C].

  Returns:
    Indices of the corners, from the most to the least MACs and accuracy.
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
  """Returns the mask to tune for a budget, which no mask may meet exactly.

  Args:
    macs, accuracy, loss: see `frontier`.
    budget: the fewest MACs of a mask.
    slack: MACs above the budget that still count as equal.

  Returns:
    Index of the most accurate mask between budget and budget + slack; if there
    is none, of the cheapest mask above, else of the most expensive below.
  """
  def rank(i):
    above = macs[i] - budget
    if 0 <= above <= slack:
      return 0, -accuracy[i], loss[i]
    return (1, above, -accuracy[i]) if above > 0 else (2, -above, -accuracy[i])
  return min(range(len(macs)), key=rank)


class Known(NamedTuple):
  """Static masks and their results on held-out images.

  Attributes:
    actions: `Actions` [C, L1], [C, L2].
    macs: [C], over the dense model's.
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
    """`Actions` [L1], [L2] of mask i."""
    return Actions(*(a[i] for a in self.actions))


def known(trainer, params, candidates):
  """Evaluates all static masks of a run on held-out images.

  Args:
    trainer: `loop.Trainer` of the run.
    params: groups.
    candidates: `Actions` [C, L1], [C, L2] of `mask_search.candidates`. Two more
      chains are added: one that starts without layers and adds them greedily,
      and `last_k`. At small budgets, a chain that drops layers may have dropped
      a good layer early.

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
  masks = Actions.from_keep(keep, num_layers)
  rows = [rows_lib.row(out, trainer.system.plain_cost)
          for out in trainer.evaluator.with_masks(
              params, trainer.dataset.holdout, masks)]
  return Known(masks, *(
      np.array([row[key] for row in rows])
      for key in ('macs_ratio', 'accuracy', 'loss')))


def finetuned(trainer, workdir, actions):
  """Tunes the model for one mask, as the joint phase tunes it for the policy.

  The training is a separate, resumable run under workdir/static; it is done
  once for each mask.

  Args:
    trainer: `loop.Trainer` of a run with a joint phase.
    workdir: directory of the run.
    actions: `Actions` [L1], [L2].

  Returns:
    A row; None if a signal stopped the training.
  """
  keep = ''.join(str(int(k)) for k in np.asarray(actions.keep))
  config = trainer.config.copy_and_resolve_references()
  before = config.phases[:config.phases.index('joint')]
  if before:  # Otherwise both start from the run in init.workdir, or weights.
    config.init.update(workdir=workdir, phase=before[-1], weights='')
  config.phases = ('static',)
  if 'joint' in config.teacher.phases:
    config.teacher.phases = ('static',)
  else:
    config.teacher.update(workdir='', phase='', weights='', model='')
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
  return dict(rows_lib.row(out, trainer.system.plain_cost), keep=keep)
