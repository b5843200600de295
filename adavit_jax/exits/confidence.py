"""How sure an exit is, and which exit an image leaves at.

One orientation for every measure: larger is surer, and an image leaves at the
first exit whose confidence is strictly above that exit's threshold. Entropy is
therefore negated: the paper's threshold of 0.05 is -0.05 here, and its 0, at
which no image leaves early, is 0. So is the difference of two exits' outputs,
which regression goes by: minus the tolerance is its threshold.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Thresholds that stop every image and none: finite, so that JSON can hold them.
NEVER = float(np.finfo(np.float32).max)
ALWAYS = -NEVER


# A rule gives the confidence at an exit, with memory of the exits before where
# it needs it: (logits [B, K], memory) -> (confidence [B], memory), pure, each
# row on its own. The memory is a pytree with a leading batch axis, None before
# the first exit; whoever runs the stages carries it along with the image.
# Minus infinity is the confidence of an image that cannot leave yet. For
# regression the logits are outputs in the target's unit.
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
  # 0 log 0 = 0, also where a logit is minus infinity.
  return jnp.where(p > 0, p * log_p, 0.).sum(-1)


def max_probability(logits):
  """The largest softmax probability.

  Args:
    logits: [..., K].

  Returns:
    [...] float32 in [1/K, 1].
  """
  return jax.nn.softmax(logits.astype(jnp.float32)).max(-1)


def margin(logits):
  """The largest softmax probability less the second largest.

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
  """How many exits in a row, this one included, give the same class.

  An image leaves once k exits agree with a threshold of k - 0.5. The counter
  of PABEE (Zhou et al., 2020) is one less: it starts at 0.

  Args:
    logits: [B, K].
    memory: (class [B], count [B]) of the exit before, None at the first.

  Returns:
    (count [B] float32, 1 at the first exit, and the memory of this exit).
  """
  label = logits.argmax(-1)
  count = jnp.ones(label.shape, jnp.float32)
  if memory is not None:
    label_before, count_before = memory
    count += jnp.where(label == label_before, count_before, 0.)
  return count, (label, count)


def agreement(outputs, memory):
  """Minus the largest difference to the exit before, for regression.

  With minus the tolerance as the threshold an image leaves once two exits in
  a row agree to better than that: PABEE's criterion for regression (Zhou et
  al., 2020) with a patience of 1.

  Args:
    outputs: [B, K], in the target's unit.
    memory: outputs of the exit before, None at the first.

  Returns:
    (confidence [B] float32, minus infinity at the first exit, and the memory
    of this exit).
  """
  outputs = outputs.astype(jnp.float32)
  if memory is None:
    return jnp.full(outputs.shape[:-1], -jnp.inf, jnp.float32), outputs
  return -jnp.abs(outputs - memory).max(-1), outputs


RULES = {
    'entropy': _memoryless(negative_entropy),
    'max_probability': _memoryless(max_probability),
    'margin': _memoryless(margin),
    'patience': patience,
    'agreement': agreement,
}
# The other rules ask for the probabilities of classes, or for the best one.
REGRESSION_RULES = ('agreement',)


# The confidences that a rule can give.
_RANGES = {'entropy': (ALWAYS, 0.), 'max_probability': (0., 1.),
           'margin': (0., 1.), 'patience': (0., NEVER),
           'agreement': (ALWAYS, 0.)}


def check_range(rule, thresholds):
  """Raises a ValueError for thresholds that a rule's confidence cannot reach.

  Args:
    rule: name of one of `RULES`.
    thresholds: [E - 1], or one number; `NEVER` and `ALWAYS` fit every rule. One
      that is no number is for `check_thresholds` to refuse.
  """
  low, high = _RANGES[rule]
  values = np.ravel(np.asarray(thresholds, np.float64))
  for x in np.clip(values[~np.isnan(values)], ALWAYS, NEVER):
    if not (low <= x <= high or x in (NEVER, ALWAYS)):
      hint = (f': its confidence is negated, give {-x:g} for {x:g}'
              if high == 0 else '')
      raise ValueError(f'threshold {x:g} is out of the range of the rule '
                       f'{rule!r}, {low:.4g} to {high:.4g}{hint}')


def rules_for(regression):
  """Names of the `RULES` for regression, or else those for classification."""
  return tuple(
      name for name in RULES if (name in REGRESSION_RULES) == regression)


def confidences(rule, logits):
  """Confidence at every exit when all stages are run.

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
  """The exit that each image leaves at; the last one takes what is left.

  Args:
    confidence: [E, n].
    thresholds: [E - 1], or one number for all exits.

  Returns:
    [n] int, NumPy.

  Raises:
    ValueError: see `check_thresholds`.
  """
  # Float64 holds both sides exactly: everybody compares the same numbers.
  confidence = np.asarray(confidence, np.float64)
  thresholds = check_thresholds(thresholds, len(confidence))
  leaves = confidence[:-1] > thresholds[:, None]
  leaves = np.concatenate([leaves, np.ones_like(confidence[-1:], bool)])
  return leaves.argmax(0)


def check_thresholds(thresholds, num_exits):
  """Thresholds as a float64 array [E - 1]; one number stands for all exits.

  It cannot be written to, so that none escapes this check. Infinite ones become
  `NEVER` and `ALWAYS`.

  Raises:
    ValueError: for another number of thresholds, or one that is not a number.
  """
  array = np.asarray(thresholds, np.float64)
  wanted = (num_exits - 1,)
  if array.ndim and array.shape != wanted:
    raise ValueError(
        f'thresholds={thresholds} has shape {array.shape}; {num_exits} exits '
        f'take {num_exits - 1}, for all but the last, or one number for all')
  if np.isnan(array).any():
    raise ValueError(f'thresholds={thresholds} must be numbers; inf lets no '
                     f'image leave, -inf every image')
  found = np.broadcast_to(np.clip(array, ALWAYS, NEVER), wanted).copy()
  found.setflags(write=False)
  return found


def parse_thresholds(texts):
  """The thresholds that a flag gives.

  Args:
    texts: list of strings; None or empty where the flag is not given.

  Returns:
    None, one float for one string, or a list of floats.

  Raises:
    ValueError: if one is no number.
  """
  try:
    values = [float(text) for text in texts or ()]
  except ValueError as e:
    raise ValueError(f'--threshold={",".join(texts)} must be one number, or '
                     f'several with commas between them') from e
  return (values if len(values) > 1 else values[0]) if values else None
