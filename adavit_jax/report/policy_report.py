"""Evaluates a run: dense, adaptive, and baselines at the same MACs."""

import copy
import functools

import jax
import numpy as np

from adavit_jax.evaluation import evaluator
from adavit_jax.models import plan
from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed
from adavit_jax.policies import knob as knob_lib
from adavit_jax.policies import mask_search
from adavit_jax.policies import value as value_lib
from adavit_jax.report import ceiling
from adavit_jax.report import promised_row
from adavit_jax.report import rows as rows_lib
from adavit_jax.report import static_masks
from adavit_jax.runs import phase_start
from adavit_jax.runs import saved_run
from adavit_jax.train import state as state_lib

_DRAWS = 3  # random and shuffled rows are means over this many draws


class Report:
  """Computes the rows of a run's report."""

  def __init__(self, trainer, run, state, budget):
    """Evaluates the dense model.

    Args:
      trainer: `loop.Trainer` made from the config of a run with a trained
        policy.
      run: the opened `Run`, to read its earlier checkpoints.
      state: `State` of the checkpoint to report on.
      budget: MACs per image over the dense model's, to calibrate the policy to.
    """
    self.trainer, self._run, self._budget = trainer, run, budget
    self._system, self._evaluator = trainer.system, trainer.evaluator
    self._data = trainer.dataset
    self._state = state
    self._params = state_lib.final_params(self._state)
    self._rng = np.random.default_rng(trainer.config.seed)
    self.dense = self._evaluator.dense(self._state.teacher, self._data.test)

  def _params_after(self, phase, run=None):
    run = run or self._run
    state = saved_run.reread(lambda: run.state(
        run.find(phase=phase), self._system, self.trainer.mesh))
    return state_lib.final_params(state)

  @functools.cached_property
  def _untuned(self):
    """The model at the start of the joint phase."""
    config = self.trainer.config
    phases = config.phases
    before = phases[:phases.index('joint')] if 'joint' in phases else phases
    if before:
      return self._params_after(before[-1])
    if config.init.workdir:
      with saved_run.Run(config.init.workdir) as run:
        return self._params_after(config.init.phase, run)
    return self._state.teacher  # the model of init.weights

  @functools.cached_property
  def _masks(self):
    """Static masks of the untuned model, `static_masks.Known`."""
    candidates = self._state.params['value'].masks
    if 'warm_start' not in self.trainer.config.phases:
      candidates = phase_start.static_masks(self.trainer, self._untuned)
    return static_masks.known(self.trainer, self._untuned, candidates)

  def dense_row(self):
    return rows_lib.row(self.dense, self._system.plain_cost)

  @property
  def knob(self):
    """The `Knob` of the policy."""
    return knob_lib.KNOBS[self._system.nets.decide]

  def calibrate(self, params, target):
    """Finds the knob's number at which held-out images take `target` mean MACs.

    Args:
      params: groups with a trained policy.
      target: MACs per image over the dense model's.

    Returns:
      A number in the knob's range.
    """
    def macs_ratio(number):
      actions = self._evaluator.decisions(
          params, self._data.holdout, knob=number)
      return self._system.cost.ratio(actions).mean()
    return knob_lib.calibrate(self.knob, macs_ratio, target)

  def policy_rows(self, params, number):
    """Returns rows of one set of weights: policy, random and shuffled actions.

    Args:
      params: groups with a trained policy.
      number: the knob's; None calibrates it to the budget.

    Returns:
      (dict of rows adaptive, random, shuffled; `Outputs` of the policy).
    """
    if number is None:
      number = self.calibrate(params, self._budget)
    test, cost = self._data.test, self._system.cost
    out = self._evaluator.adaptive(params, test, knob=number)
    adaptive = rows_lib.adaptive_row(out, self.dense, cost, test.meta)
    adaptive[self.knob.name] = number
    keep = rows_lib.budget_keep(
        self._system.plain_cost, adaptive['macs_ratio'])
    random, shuffled = [], []
    for i in range(_DRAWS):
      draw = Actions(*map(np.asarray, fixed.uniform(
          jax.random.key(i), len(test), plan.num_layers(self._system.model),
          keep=keep)))
      random.append(rows_lib.row(
          self._evaluator.with_actions(params, test, draw),
          self._system.plain_cost))
      order = self._rng.permutation(len(test))
      permuted = Actions(*(a[order] for a in out.actions))
      shuffled.append(rows_lib.row(
          self._evaluator.with_actions(params, test, permuted), cost))
    return dict(adaptive=adaptive, random=rows_lib.mean_rows(random),
                shuffled=rows_lib.mean_rows(shuffled)), out

  def final(self, number=None):
    """Returns `policy_rows` of the checkpoint."""
    return self.policy_rows(self._params, number)

  def at(self, macs_ratio):
    """Returns the policy's row of the checkpoint, calibrated to `macs_ratio`.

    The MACs of a static mask are fixed, while a policy can meet any budget: to
    compare the two, the policy is calibrated to the mask's MACs.

    Args:
      macs_ratio: mean MACs per image over the dense model's.

    Returns:
      A row, with the knob's number.
    """
    return self._row_at(
        self._params, self.calibrate(self._params, macs_ratio))

  def by_value(self):
    """Returns this report with the value policy; None if it is not fitted."""
    if not value_lib.is_fitted(self._params['value']):
      return None
    report = copy.copy(self)
    report._system = self._system.deciding('value')
    report._evaluator = evaluator.Evaluator(
        report._system, self.trainer.mesh, self.trainer.config.eval_batch_size)
    return report

  def untuned_at(self, macs_ratio):
    """Returns the row, as `at`, of the weights before the joint phase."""
    params = self._params_after('policy')
    return self._row_at(params, self.calibrate(params, macs_ratio))

  def ceiling(self):
    """Returns `ceiling.rows` of the checkpoint's value policy."""
    return ceiling.rows(self._evaluator, self._system, self._params,
                        self._data.test, self._budget)

  def _row_at(self, params, number):
    out = self._evaluator.adaptive(params, self._data.test, knob=number)
    return {**rows_lib.row(out, self._system.cost), self.knob.name: number}

  def promised(self, wanted):
    """Returns the row of a number with a promise, see `promised_row`."""
    fields, out = promised_row.of_policy(self.trainer, self._params, wanted)
    return dict(rows_lib.row(out, self._system.cost), **fields)

  def one_set_of_weights(self):
    """Compares adaptive and static choices on the untuned weights.

    Returns:
      Rows adaptive, random and shuffled at the end of the policy phase; static,
      interpolated on the curve of the best static masks at the same MACs;
      frontier, the rows of this curve; the policies of Table 1; and stochastic,
      the policy of figure 9 for the same MACs, as near as it comes. {} if the
      run had no policy phase, or held out no images.
    """
    if ('policy' not in self.trainer.config.phases
        or not len(self._data.holdout)):
      return {}
    rows, _ = self.policy_rows(self._params_after('policy'), None)
    corners = [self._masks.mask(i)
               for i in static_masks.frontier(*self._masks.score)]
    table_1 = self._table_1()
    outputs = self._evaluator.with_masks(
        self._untuned, self._data.test,
        Actions(*map(np.stack, zip(*corners, *table_1.values()))))
    found = list(map(self._untuned_row, outputs))
    curve, fixed_rows = found[:len(corners)], found[len(corners):]
    best = rows_lib.interpolate(curve, rows['adaptive']['macs_ratio'])
    return dict(
        rows, static=best, frontier=curve, **dict(zip(table_1, fixed_rows)),
        stochastic=self._stochastic_row(rows['adaptive']['macs_ratio']))

  def _untuned_row(self, outputs):
    return rows_lib.row(outputs, self._system.plain_cost)

  def _table_1(self):
    """The masks of the patent's Table 1 that the model has the layers for.

    Returns:
      {name of the row: `Actions` [L1], [L2]}.
    """
    num_layers = plan.num_layers(self._system.model)
    return {
        f'table_1_{number}_{which}': fixed.table_1(
            number, num_layers, which=which)
        for number, dropped in fixed.TABLE_1.items()
        for which in ('first', 'last')
        if any(dropped) and all(a <= b for a, b in zip(dropped, num_layers))}

  def _stochastic_row(self, macs_ratio):
    """Row of the patent's stochastic policy, untuned, a mean of draws."""
    final = rows_lib.survival_final(self._system.plain_cost, macs_ratio)
    draw = lambda seed: Actions(*map(np.asarray, fixed.stochastic(
        jax.random.key(seed), len(self._data.test),
        plan.num_layers(self._system.model), final=final)))
    rows = [self._untuned_row(self._evaluator.with_actions(
        self._untuned, self._data.test, draw(seed))) for seed in range(_DRAWS)]
    return dict(rows_lib.mean_rows(rows), survival=final)

  def sweep(self, num=11):
    """Evaluates the final policy at `num` budgets.

    Returns:
      Rows of the test split, from the lowest to the highest number of the knob.
    """
    return [self._row_at(self._params, number)
            for number in self.knob.sweep(num)]

  def static_masks(self, macs_ratio):
    """Returns static masks to tune, with at least `macs_ratio` if possible.

    Args:
      macs_ratio: MACs per image over the dense model's.

    Returns:
      Dict of `Actions` [L1], [L2]. static, if images were held out: the mask
      with the best accuracy on them among those that take up to half a layer
      more. static_last: drops the last layers and is the cheapest at or above
      `macs_ratio`.
    """
    cost = self._system.plain_cost
    last = static_masks.last_k(plan.num_layers(self._system.model))
    chosen = {'static_last': mask_search.nearest(last, cost, macs_ratio)}
    if len(self._data.holdout):
      half = max(cost.msa + cost.mlp) / cost.dense / 2
      i = static_masks.at_budget(*self._masks.score, macs_ratio, half)
      chosen['static'] = self._masks.mask(i)
    return chosen
