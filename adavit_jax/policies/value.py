"""The value policy: for each image, the best of a few dozen masks.

It predicts the probability of the true class under every candidate mask by a
linear function of what the policy observes, and chooses the mask with the
largest prediction minus price x MACs. The price is a knob at run time. It is
fitted in closed form to the results of every mask on every image of a sample.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models.actions import Actions

PRICES = 1e-3, 20.  # range in which a price is sought
# In the unit of the inputs' squares, summed over the images.
_PENALTIES = np.logspace(-2, 5, 29)


class Value(NamedTuple):
  """The parameters of a value policy; none of them has a gradient.

  Attributes:
    kernel: [F, C].
    bias: [C].
    masks: candidate `Actions` [C, L1], [C, L2]; the first L1 + L2 + 1 are the
      chain of all images (`mask_search.candidates`).
    price: price at which the mean MACs met the target in the fit, [].
  """
  kernel: jax.Array
  bias: jax.Array
  masks: Actions
  price: jax.Array


def new(num_inputs, num_candidates, num_layers):
  """Returns a `Value` before the fit: all layers of every image run.

  Args:
    num_inputs: F.
    num_candidates: C.
    num_layers: (L1, L2).
  """
  masks = Actions(*(jnp.ones((num_candidates, num)) for num in num_layers))
  return Value(jnp.zeros((num_inputs, num_candidates)),
               jnp.zeros(num_candidates), masks, jnp.ones(()))


def is_fitted(value):
  """Returns whether a `Value` was fitted, a bool."""
  return bool(jnp.any(value.kernel != 0))


def predict(value, inputs):
  """Predicts the success under each mask: [B, F] -> [B, C]."""
  return inputs @ value.kernel + value.bias


def best(predicted, ratios, price):
  """Returns the index of the mask to run for each image, [B].

  Args:
    predicted: success under each mask, [B, C].
    ratios: MACs of each mask over the dense model's, [C].
    price: μ, the success that justifies the MACs of the dense model, [].
  """
  return jnp.argmax(predicted - price * ratios, axis=-1)


def solve_price(predicted, ratios, target):
  """Finds the price at which the chosen masks meet a budget.

  Args:
    predicted: success under each mask, [B, C].
    ratios: MACs of each mask over the dense model's, [C].
    target: mean ratio to meet, from below and as closely as prices allow.

  Returns:
    The price, [].
  """
  predicted = jax.lax.stop_gradient(jnp.asarray(predicted))
  ratios = jnp.asarray(ratios)

  def halve(_, bounds):
    low, high = bounds
    middle = jnp.sqrt(low * high)
    spends = ratios[best(predicted, ratios, middle)].mean() > target
    return jnp.where(spends, middle, low), jnp.where(spends, high, middle)

  _, price = jax.lax.fori_loop(0, 30, halve, tuple(map(jnp.float32, PRICES)))
  return price


def fit(inputs, success):
  """Fits the predictions by ridge regression.

  The penalty has the least error when each image is left out in turn.

  Args:
    inputs: [n, F].
    success: probability of the true class under each mask, [n, C].

  Returns:
    (kernel [F, C], bias [C], penalty), NumPy float32 and a float.
  """
  from sklearn import linear_model  # here, since its import takes a second
  model = linear_model.RidgeCV(alphas=_PENALTIES)
  model.fit(np.asarray(inputs, np.float64), np.asarray(success, np.float64))
  return (np.float32(model.coef_.T), np.float32(model.intercept_),
          float(model.alpha_))


def interaction_r2(predicted, success):
  """R² of predictions on what a choice of a mask for an image depends on.

  The mean of each mask over images and of each image over masks is taken out
  of both arguments: they say which masks are good and which images are easy,
  but not which mask suits which image.

  Args:
    predicted: [n, C].
    success: [n, C].

  Returns:
    A float of at most 1; 0 for a policy that gives every image the same mask.
    NaN if success has no interaction.
  """
  a, b = map(_interaction, (predicted, success))
  total = (b ** 2).sum()
  return float(1 - ((a - b) ** 2).sum() / total) if total else float('nan')


def _interaction(table):
  table = np.asarray(table, np.float64)
  return (table - table.mean(0) - table.mean(1, keepdims=True) + table.mean())
