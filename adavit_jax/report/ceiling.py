"""What a choice of layers can gain at most: every mask on every test image."""

import numpy as np

from adavit_jax.policies import value as value_lib


def rows(evaluator, system, params, split, budget):
  """Evaluates a value policy beside an oracle that knows all results.

  If the policy is near the oracle, only a better model helps. If it is far and
  its interaction R² is small, what it reads does not tell which images need
  which layers.

  Args:
    evaluator: `Evaluator` of the system.
    system: `System` whose value policy decides.
    params: groups with a fitted value policy.
    split: `Split` of n images.
    budget: MACs per image over the dense model's.

  Returns:
    Dict with interaction_r2 of the predictions, and the rows value, oracle and
    cheapest, each with accuracy and macs_ratio. The price of the first two
    meets the budget on these images. The oracle maximizes the probability of
    the true class minus price x MACs. `cheapest` has the accuracy with all
    layers, and the MACs of the cheapest right mask of the images that all
    layers get right.
  """
  value = params['value']
  observed, success, correct = evaluator.success(params, split, value.masks)
  ratios = np.asarray(system.cost.ratio(value.masks))
  predicted = np.asarray(value_lib.predict(value, observed))
  result = dict(interaction_r2=value_lib.interaction_r2(predicted, success))
  for name, table in (('value', predicted), ('oracle', success)):
    price = value_lib.solve_price(table, ratios, budget)
    chosen = np.asarray(value_lib.best(table, ratios, price))
    result[name] = dict(
        accuracy=float(correct[np.arange(len(chosen)), chosen].mean()),
        macs_ratio=float(ratios[chosen].mean()))
  dense = correct[:, ratios.argmax()]
  cost = np.where(correct[dense], ratios, np.inf).min(1)
  result['cheapest'] = dict(accuracy=float(dense.mean()),
                            macs_ratio=float(cost.mean()))
  return result
