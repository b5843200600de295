"""Evaluates a run: dense, adaptive, and the baselines at the same MACs."""

import functools

from absl import logging
import jax
import numpy as np

from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import mask_search
from adavit_jax.report import compare
from adavit_jax.report import masks
from adavit_jax.runs import phase_start
from adavit_jax.runs import run as run_lib
from adavit_jax.train import state as state_lib

_DRAWS = 3  # random and shuffled rows are means over as many draws


class Report:
  """Everything that a run's report needs, computed once."""

  def __init__(self, trainer, run, saved, budget):
    """Restores the run.

    Args:
      trainer: `loop.Trainer` made from the config of a run with a trained
        policy.
      run: the opened `Run`.
      saved: `Saved`, the checkpoint to report on.
      budget: MACs per image to calibrate the policy to, as a share of the dense
        model's.
    """
    self.trainer, self._run, self._budget = trainer, run, budget
    self._system, self._evaluator = trainer.system, trainer.evaluator
    self._data = trainer.dataset
    self._state = run.state(saved, trainer.system, trainer.mesh)
    self._params = state_lib.final_params(self._state)
    self._rng = np.random.default_rng(trainer.config.seed)
    self.dense = self._evaluator.dense(self._state.teacher, self._data.test)

  def _params_after(self, phase, run=None):
    run = run or self._run
    state = run_lib.reread(lambda: run.state(
        run.find(phase=phase), self._system, self.trainer.mesh))
    return state_lib.final_params(state)

  @functools.cached_property
  def _untuned(self):
    """The model with which the joint phase began."""
    config = self.trainer.config
    phases = config.phases
    before = phases[:phases.index('joint')] if 'joint' in phases else phases
    if before:
      return self._params_after(before[-1])
    if config.init.workdir:
      with run_lib.Run(config.init.workdir) as run:
        return self._params_after(config.init.phase, run)
    return self._state.teacher  # other people's weights

  @functools.cached_property
  def _masks(self):
    """The static masks of the untuned model, `masks.Known`."""
    candidates = self._state.candidates
    if 'warm_start' not in self.trainer.config.phases:
      candidates = phase_start.static_masks(self.trainer, self._untuned)
    return masks.known(self.trainer, self._untuned, candidates)

  def dense_row(self):
    return compare.row(self.dense, self._system.plain_cost)

  def calibrate(self, params, target):
    """Threshold at which held-out images spend `target` in the mean.

    Args:
      params: groups with a trained policy.
      target: MACs per image as a share of the dense model's.

    Returns:
      A threshold in (0, 1).

    Raises:
      ValueError: if no images were held out.
    """
    if not len(self._data.holdout):
      raise ValueError('no images were held out to calibrate the threshold on; '
                       'give --threshold=0.5, or train with '
                       '--config.data.holdout=0.1')
    def spent(logit):
      actions = self._evaluator.decisions(
          params, self._data.holdout, threshold=_sigmoid(logit))
      return self._system.cost.ratio(actions).mean()
    low, high = -6., 6.  # in logits: a higher threshold drops more
    if (least := spent(high)) > target:
      logging.warning('no threshold meets %.3f of the MACs: at %.4f the policy '
                      'still spends %.3f', target, _sigmoid(high), least)
    for _ in range(10):
      middle = (low + high) / 2
      low, high = (middle, high) if spent(middle) > target else (low, middle)
    return _sigmoid(high)

  def policy_rows(self, params, threshold):
    """Rows of one set of weights: the policy, random and shuffled actions.

    Args:
      params: groups with a trained policy.
      threshold: the policy's, or None to calibrate it to the budget.

    Returns:
      (dict of rows adaptive, random, shuffled; `Outputs` of the policy).
    """
    if threshold is None:
      threshold = self.calibrate(params, self._budget)
    test, cost = self._data.test, self._system.cost
    out = self._evaluator.adaptive(params, test, threshold=threshold)
    adaptive = compare.adaptive_row(out, self.dense, cost, test.meta)
    adaptive['threshold'] = threshold
    keep = compare.budget_keep(
        self._system.plain_cost, adaptive['macs_ratio'])
    random, shuffled = [], []
    for i in range(_DRAWS):
      draw = Actions(*map(np.asarray, fixed.uniform(
          jax.random.key(i), len(test), plan.num_layers(self._system.model),
          keep=keep)))
      random.append(compare.row(
          self._evaluator.with_actions(params, test, draw),
          self._system.plain_cost))
      order = self._rng.permutation(len(test))
      permuted = Actions(*(a[order] for a in out.actions))
      shuffled.append(compare.row(
          self._evaluator.with_actions(params, test, permuted), cost))
    return dict(adaptive=adaptive, random=compare.mean_rows(random),
                shuffled=compare.mean_rows(shuffled)), out

  def final(self, threshold=None):
    """`policy_rows` of the run's last state."""
    return self.policy_rows(self._params, threshold)

  def at(self, macs_ratio):
    """Row of the run's last state, calibrated to spend `macs_ratio`.

    A static mask spends what it spends, a policy any share: to compare the
    two, the policy is the one to move.

    Args:
      macs_ratio: MACs per image as a share of the dense model's.

    Returns:
      A row, with the threshold.

    Raises:
      ValueError: as `calibrate`.
    """
    threshold = self.calibrate(self._params, macs_ratio)
    out = self._evaluator.adaptive(
        self._params, self._data.test, threshold=threshold)
    return dict(compare.row(out, self._system.cost), threshold=threshold)

  def one_set_of_weights(self):
    """Adaptive against static on the untuned weights.

    Returns:
      Rows adaptive, random, shuffled of the policy phase's end, `static` read
      off the curve of the best static masks at the same MACs, and the rows of
      this curve, `frontier`; {} where the run had no policy phase, or held out
      no images.
    """
    if ('policy' not in self.trainer.config.phases
        or not len(self._data.holdout)):
      return {}
    rows, _ = self.policy_rows(self._params_after('policy'), None)
    curve = [self._untuned_row(self._masks.mask(i))
             for i in masks.frontier(*self._masks.score)]
    best = compare.interpolate(curve, rows['adaptive']['macs_ratio'])
    return dict(rows, static=best, frontier=curve, **self._fixed_rows())

  def _untuned_row(self, actions):
    return compare.row(
        self._evaluator.with_actions(self._untuned, self._data.test, actions),
        self._system.plain_cost)

  def _fixed_rows(self):
    """Table 1 of the patent, untuned, where there are layers enough."""
    num_layers = plan.num_layers(self._system.model)
    rows = {}
    for number, dropped in fixed.TABLE_1.items():
      fits = all(a <= b for a, b in zip(dropped, num_layers))
      for which in ('first', 'last'):
        if fits and any(dropped):
          rows[f'table_1_{number}_{which}'] = self._untuned_row(
              fixed.table_1(number, num_layers, which=which))
    return rows

  def sweep(self, num=11):
    """The final policy at `num` thresholds: one model, many budgets.

    Returns:
      Rows of the test split, from the lowest threshold to the highest.
    """
    rows = []
    for logit in np.linspace(-4, 4, num):
      out = self._evaluator.adaptive(
          self._params, self._data.test, threshold=_sigmoid(logit))
      rows.append(dict(compare.row(out, self._system.cost),
                       threshold=_sigmoid(logit)))
    return rows

  def static_masks(self, macs_ratio):
    """Static masks to tune, that spend at least `macs_ratio`.

    Args:
      macs_ratio: MACs per image as a share of the dense model's.

    Returns:
      Dict of `Actions` [L1], [L2]: static, the best on held-out images of
      those that spend up to half a layer more, where there are such images;
      static_last, which drops the last layers and spends as little more as can
      be.
    """
    cost = self._system.plain_cost
    last = masks.last_k(plan.num_layers(self._system.model))
    found = {'static_last': mask_search.nearest(last, cost, macs_ratio)}
    if len(self._data.holdout):
      half = max(cost.msa + cost.mlp) / cost.dense / 2
      i = masks.at_budget(*self._masks.score, macs_ratio, half)
      found['static'] = self._masks.mask(i)
    return found


def _sigmoid(x):
  return float(1 / (1 + np.exp(-x)))
