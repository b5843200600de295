"""Checks what a promise is asked for, before anything runs."""

import numbers

import numpy as np

from adavit_jax.promise import p_values
from adavit_jax.promise import testing


def check_range(risk, confidence, loss):
  """Raises a ValueError for a risk or confidence out of range."""
  for name, value, bound in (('risk', risk, loss.bound),
                             ('confidence', confidence, 1.)):
    if not (isinstance(value, numbers.Real) and 0 < value < bound):
      raise ValueError(f'{name}={value} must be a number between 0 and '
                       f'{bound:g}' + (f' {loss.unit}' if name == 'risk' and
                                       loss.unit else ''))
  if loss.kind == 'gap' and 1 - confidence <= p_values.LEAST_PAIRED:
    raise ValueError(f"confidence={confidence} is more than the test of 'gap' "
                     f"can reach; give at most 0.999, or kind='harm'")


def check_number(num, shape, rule, loss, risk, confidence):
  """Raises a ValueError if no n images could pass, whatever their losses.

  Args:
    num: n.
    shape: (T, E), the numbers of thresholds of the policy and of exits.
    rule: of the exits, or None.
    loss: `risks.Loss`.
    risk: see `promises.Promise`.
    confidence: see `promises.Promise`.
  """
  least = loss.least_images(risk, confidence)
  if least is None or testing.num_tested(shape, rule, num) < least:
    needed = least and next(n for n in range(least, 3 * least)
                            if testing.num_tested(shape, rule, n) >= least)
    raise ValueError(
        f'{num} images are too few for risk={risk:g} at confidence='
        f'{confidence:g}: even without any loss, {needed or "over a million"} '
        f'are needed; give more, or a larger risk')


def check_labels(labels, num, num_classes):
  """Checks labels of n images and returns them as an array [n].

  Args:
    labels: integers, or numbers if `num_classes` is None.
    num: n.
    num_classes: K, or None for numbers.

  Raises:
    ValueError: if they are not [n], not finite, not of the K classes, or all
      equal.
  """
  labels = np.asarray(labels)
  if labels.shape != (num,):
    raise ValueError(f'labels have shape {labels.shape}; {num} images take '
                     f'[{num}]')
  if num_classes is None:
    if not (labels.dtype.kind in 'iuf' and np.isfinite(labels).all()):
      raise ValueError('labels must be finite numbers')
    return labels.astype(np.float64)
  if labels.dtype.kind not in 'iu' or (
      num and not 0 <= labels.min() <= labels.max() < num_classes):
    raise ValueError(f'labels must be integers from 0 to {num_classes - 1}, '
                     f'the classes of the model, but have dtype {labels.dtype} '
                     f'and values such as {np.unique(labels)[[0, -1]]}')
  if num > 1 and labels.min() == labels.max():
    raise ValueError(f'labels are all of class {labels[0]}; draw the images as '
                     f'they come in use')
  return labels


def check_fits(promise, *, exits, knob, rule=None):
  """Raises a ValueError unless a promise is about a model's thresholds.

  Args:
    promise: `promises.Promise`.
    exits: whether the model has exits.
    knob: name of the number of its policy, or None.
    rule: the rule of its exits.
  """
  if ((promise.thresholds is not None) != exits or promise.knob != knob
      or promise.rule != rule):
    raise ValueError(
        f'promise: it is about {promise.knob}={promise.number} of a policy and '
        f'thresholds={promise.thresholds} of exits with the rule '
        f'{promise.rule!r}, but this model has the rule {rule!r} and a policy '
        f'with the number {knob!r}; calibrate this model')
