"""Confidence measures of exits, and the exit at which an image leaves.

For every measure, higher is more confident. An image leaves at the first exit
whose confidence is strictly above the threshold of that exit. Entropy is
therefore negated: the paper's threshold of 0.05 is -0.05 here; at 0, no image
leaves early in either. The difference between the outputs of two exits, used
for regression, is negated too: its threshold is minus the tolerance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Thresholds at which no image and every image leaves; finite, for JSON.
NEVER = float(np.finfo(np.float32).max)
ALWAYS = -NEVER


def format_threshold(value):
  """A threshold as text, 'inf' and '-inf' for `NEVER` and `ALWAYS`.

  All digits are kept: rounding a probability near 1 changes the exits.
  """
  if abs(value) == NEVER:
    return 'inf' if value > 0 else '-inf'
  return repr(float(value))


# A rule computes the confidence at an exit: (logits [B, K], memory) ->
# (confidence [B], memory). It is pure and treats each row independently. The
# memory of earlier exits is a pytree with a leading batch axis, or None before
# the first exit; the caller that runs the stages carries it along with the
# image. The confidence of an image that cannot leave yet is minus infinity. NaN
# in the logits is NaN in the confidence, at which no image leaves. For
# regression, logits are outputs in the unit of the target.
Rule = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def negative_entropy(logits):
  """Minus the entropy of the softmax in nats (RAViT, algorithm 1).

  Args:
    logits: [..., K].

  Returns:
    [...] float32 in [-log K, 0].
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  p = jnp.exp(log_p)
  # 0 log 0 = 0, also if a logit is minus infinity.
  return jnp.where(p == 0, 0., p * log_p).sum(-1)


def max_probability(logits):
  """The largest softmax probability.

  Args:
    logits: [..., K].

  Returns:
    [...] float32 in [1/K, 1].
  """
  return jax.nn.softmax(logits.astype(jnp.float32)).max(-1)


def margin(logits):
  """The largest softmax probability minus the second largest.

  Args:
    logits: [..., K], K >= 2.

  Returns:
    [...] float32 in [0, 1].
  """
  p = jax.nn.softmax(logits.astype(jnp.float32))
  first, second = jnp.moveaxis(jax.lax.top_k(p, 2)[0], -1, 0)
  return first - second


def _memoryless(measure):
  return lambda logits, memory: (measure(logits), None)


def patience(logits, memory):
  """Number of consecutive exits, up to this one, that predict the same class.

  With a threshold of k - 0.5 an image leaves once k exits agree. The counter of
  PABEE (Zhou et al., 2020) starts at 0 and is one less.

  Args:
    logits: [B, K].
    memory: (class [B], count [B]) of the previous exit, None at the first.

  Returns:
    (count [B] float32, which is 1 at the first exit; memory of this exit).
  """
  label = logits.argmax(-1)
  count = jnp.ones(label.shape, jnp.float32)
  if memory is not None:
    label_before, count_before = memory
    count += jnp.where(label == label_before, count_before, 0.)
  # The largest of them would hide NaN.
  confidence = jnp.where(jnp.isnan(logits).any(-1), jnp.nan, count)
  return confidence, (label, count)


def agreement(outputs, memory):
  """Minus the largest difference to the previous exit, for regression.

  If the threshold is minus the tolerance, an image leaves once two consecutive
  exits differ by less than the tolerance. This is the criterion of PABEE for
  regression (Zhou et al., 2020) with a patience of 1.

  Args:
    outputs: [B, K], in the unit of the target.
    memory: outputs of the previous exit, None at the first.

  Returns:
    (confidence [B] float32, which is minus infinity at the first exit; memory
    of this exit).
  """
  outputs = outputs.astype(jnp.float32)
  if memory is None:
    unknown = jnp.isnan(outputs).any(-1)
    return jnp.where(unknown, jnp.nan, -jnp.inf), outputs
  return -jnp.abs(outputs - memory).max(-1), outputs


RULES = {
    'entropy': _memoryless(negative_entropy),
    'max_probability': _memoryless(max_probability),
    'margin': _memoryless(margin),
    'patience': patience,
    'agreement': agreement,
}
# The other rules need class probabilities or the predicted class.
REGRESSION_RULES = ('agreement',)


# The range of confidences of a rule, if not all numbers.
_RANGES = {'entropy': (ALWAYS, 0.), 'max_probability': (0., 1.),
           'margin': (0., 1.), 'patience': (0., NEVER),
           'agreement': (ALWAYS, 0.)}


def check_range(rule, thresholds):
  """Raises a ValueError for thresholds outside the range of a rule.

  Args:
    rule: name of one of `RULES`.
    thresholds: [E - 1], or one number; `NEVER` and `ALWAYS` are valid for every
      rule. NaN is rejected by `check_thresholds`.
  """
  low, high = _RANGES.get(rule, (ALWAYS, NEVER))
  values = np.ravel(np.asarray(thresholds, np.float64))
  for x in np.clip(values[~np.isnan(values)], ALWAYS, NEVER):
    if not (low <= x <= high or x in (NEVER, ALWAYS)):
      hint = (f': its confidence is negated, give {-x:g} for {x:g}'
              if high == 0 else '')
      raise ValueError(f'threshold {x:g} is out of the range of the rule '
                       f'{rule!r}, {low:.4g} to {high:.4g}{hint}')


def rules_for(regression):
  """Names of the `RULES` for regression or for classification."""
  return tuple(
      name for name in RULES if (name in REGRESSION_RULES) == regression)


def confidences(rule, logits):
  """Confidence at every exit if all stages run.

  Args:
    rule: a `Rule`, for example one of `RULES`.
    logits: [E, B, K].

  Returns:
    [E, B] float32.
  """
  memory, rows = None, []
  for y in logits:
    row, memory = rule(y, memory)
    rows.append(row)
  return jnp.stack(rows)


def choose(confidence, thresholds):
  """The exit at which each image leaves, the last one if no other.

  Args:
    confidence: [E, n].
    thresholds: [E - 1], or one number for all exits.

  Returns:
    [n] int, NumPy.

  Raises:
    ValueError: see `check_thresholds`.
  """
  # Both are exact in float64, so every caller compares the same numbers.
  confidence = np.asarray(confidence, np.float64)
  thresholds = check_thresholds(thresholds, len(confidence))
  leaves = confidence[:-1] > thresholds[:, None]
  leaves = np.concatenate([leaves, np.ones_like(confidence[-1:], bool)])
  return leaves.argmax(0)


def check_thresholds(thresholds, num_exits):
  """Thresholds as a float64 array [E - 1]; one number is used for all exits.

  Infinite values become `NEVER` and `ALWAYS`. The array is read-only, so that
  no unchecked value can be assigned.

  Raises:
    ValueError: if the number of thresholds is wrong, or a threshold is NaN.
  """
  array = np.asarray(thresholds, np.float64)
  shape = (num_exits - 1,)
  if array.ndim and array.shape != shape:
    raise ValueError(
        f'thresholds={thresholds} has shape {array.shape}; {num_exits} exits '
        f'take {num_exits - 1}, for all but the last, or one number for all')
  if np.isnan(array).any():
    raise ValueError(f'thresholds={thresholds} must not be NaN; give inf to '
                     f'let no image leave, -inf to let every image leave')
  array = np.broadcast_to(np.clip(array, ALWAYS, NEVER), shape).copy()
  array.setflags(write=False)
  return array


def parse_thresholds(texts):
  """Parses the values of the flag --threshold.

  Args:
    texts: list of strings; None if the flag is not set.

  Returns:
    None, one float for one string, or a list of floats.

  Raises:
    ValueError: for non-numeric values, or none.
  """
  if texts is None:
    return None
  try:
    values = [float(text) for text in texts or ['']]
  except ValueError as e:
    raise ValueError(f'--threshold={",".join(texts)} must be one number, or '
                     f'several separated by commas') from e
  return values if len(values) > 1 else values[0]
