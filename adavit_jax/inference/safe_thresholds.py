"""Thresholds of a loaded model with a promise, from held-out images."""

from absl import logging
import numpy as np

from adavit_jax import models
from adavit_jax.models import plan
from adavit_jax.policies import fixed
from adavit_jax.policies import knob as knob_lib
from adavit_jax.promise import promises
from adavit_jax.promise import recorded as recorded_lib
from adavit_jax.promise import request
from adavit_jax.promise import risks

# A threshold of policy networks at which every layer runs.
KEEP_ALL = 1e-37
# The first position of a threshold behind that. A joint phase for a small
# budget leaves most probabilities far below those between which budgets are
# sought.
_SAFEST = -16.
# Numbers of a policy that are tried; fewer if exits are tried with each.
_ALONE, _WITH_EXITS = 30, 8


def calibrate(clf, images, labels=None, *, risk=0.01, confidence=0.95,
              kind=None, bound=None, seed=0):
  """Sets the cheapest thresholds of a classifier that keep a promise.

  With probability at least `confidence` over the draw of the images, the
  expected loss of an image like them, against the full model, is at most
  `risk`. The full model is this one with all of its layers, without early
  exits. It sets `clf.thresholds` of exits and `clf.threshold` of a policy, and
  `clf.promise`, until a threshold is changed. If no thresholds pass, no image
  leaves early and no layer is dropped, and a warning says how many more images
  would be needed.

  Source: Angelopoulos et al. (2021), Laufer-Goldenberg et al. (2023), for early
  exits Jazbec et al. (2024).

  Args:
    clf: `Classifier` with a policy, or `CascadeClassifier`.
    images: uint8 [n, S, S, C], for example from `clf.read`; an independent
      sample of the images in use that the model was not trained on.
    labels: [n], classes or numbers; None if the risk is the disagreement.
    risk: the largest expected loss: a share of the images, or for a regression
      in the unit of its target.
    confidence: in (0, 1).
    kind: the loss of an image. 'harm': the full model is right and the adaptive
      one is wrong; at least as large as the loss of accuracy. 'gap': the loss
      of accuracy itself, in which images that only the adaptive model gets
      right count too. 'disagreement': the two differ; needs no labels. 'error',
      for a regression: increase of the absolute error. None for 'harm' or
      'error' with labels, and 'disagreement' without.
    bound: for a regression, larger losses count as this one; None for the
      standard deviation of the target.
    seed: of the order of the images.

  Returns:
    `Promise`, which is `clf.promise`.

  Raises:
    ValueError: if risk or confidence is out of range, the images are too few,
      labels are missing or not of this model's classes, logits are NaN, or the
      model has nothing to calibrate.
  """
  system = clf.system
  loss = risks.create(kind, target=system.target, bound=bound,
                      labeled=labels is not None)
  request.check_range(risk, confidence, loss)
  images = models.as_pixels(system.model, images)
  classes = None if system.target else system.model.num_classes
  if labels is not None:
    labels = request.check_labels(labels, len(images), classes)
  num_policy = len(numbers(_knob(clf), system.num_exits))
  rule = system.config.exits.rule if system.staged else None
  request.check_number(len(images), (num_policy, system.num_exits), rule, loss,
                       risk, confidence)
  recorded = record(clf, images)
  clf.promise = promises.make(
      recorded, risk, confidence, loss, labels=labels, num_classes=classes,
      seed=seed)
  if not clf.promise.passed:
    logging.warning('%s', clf.promise)
  return clf.promise


def numbers(knob, num_exits):
  """Returns T ascending numbers of a policy to try.

  Args:
    knob: `Knob` of the policy, or None without one.
    num_exits: E.

  Returns:
    Tuple of T numbers; at the first, all layers run. (None,) without a policy.
  """
  if knob is None:
    return (None,)
  num = _ALONE if num_exits == 1 else _WITH_EXITS
  first, low = ((KEEP_ALL, _SAFEST) if knob.name == 'threshold' else
                (None, knob.low))
  return (first, *map(knob.at, np.linspace(low, knob.high, num - 1)))


def _knob(clf):
  """The `Knob` of a classifier's policy, or None without one."""
  system = clf.system
  if not system.staged:
    # The layers may be those of a promise that did not pass.
    if clf.system.nets is None or clf.actions is not None and not clf.promise:
      raise ValueError('clf: a classifier whose layers are given has no '
                       'threshold to calibrate; set its actions to None, or '
                       'load a run with a policy or with exits')
    return clf.knob
  if system.num_exits == 1:
    raise ValueError('clf: a model with a single exit has no thresholds to '
                     'calibrate')
  return of_exits(system, clf.phase)


def of_exits(system, phase):
  """The `Knob` of the policy of a model with exits, or None without one.

  Args:
    system: `System`.
    phase: one of the config's phases.

  Raises:
    ValueError: for a value policy, in which no price keeps all layers.
  """
  if system.after(phase).decider != 'policy':
    return None
  if system.nets.decide != 'networks':
    raise ValueError(f'nets.decide={system.nets.decide!r}: exits can be '
                     f'calibrated with policy networks only; use '
                     f"nets.decide='networks'")
  return knob_lib.KNOBS['networks']


def record(clf, images):
  """Runs images under every number of the policy and through every exit.

  Args:
    clf: `Classifier` with a policy, or `CascadeClassifier`.
    images: uint8 [n, S, S, C].

  Returns:
    `Recorded`.

  Raises:
    ValueError: if the model has nothing to calibrate, or logits of the full
      model are NaN.
  """
  system, knob = clf.system, _knob(clf)
  policy, full = numbers(knob, system.num_exits), None
  if knob is not None:
    full = _labels(system, clf.full(images))
  if system.staged:
    columns = [np.stack(x) for x in zip(*(
        clf.at_exits(images, number) for number in policy))]
  else:
    columns = _at_numbers(clf, images, policy, full)
  rule, full_macs = None, system.plain_cost.dense
  if system.staged:
    rule = system.config.exits.rule
    full_macs = system.after(clf.phase).full_macs
  return recorded_lib.Recorded(
      knob and knob.name, policy, rule, *columns,
      columns[0][0, -1] if full is None else full, full_macs)


def _at_numbers(clf, images, policy, full):
  """Returns predictions, 0 or NaN if logits are, and MACs, [T, 1, n] each.

  An image is run again only where a number changes its layers.

  Args:
    clf: `Classifier` with a policy.
    images: uint8 [n, S, S, C].
    policy: T ascending numbers; the first stands for all layers.
    full: predictions with all layers, [n].
  """
  keep = clf.decisions(images, policy[1:])
  before, labels = np.ones_like(keep[:, 0]), full.copy()
  nan = np.zeros(len(images))
  macs = np.full(len(images), clf.system.cost.adaptive(
      fixed.all_layers(plan.num_layers(clf.system.model))), np.float64)
  columns = [(labels.copy(), nan.copy(), macs.copy())]
  for t, number in enumerate(policy[1:]):
    rows = np.flatnonzero((keep[:, t] != before).any(-1))
    if len(rows):
      found = clf.at(images[rows], number)
      labels[rows], macs[rows] = found.labels, found.macs
      nan[rows] = np.where(np.isnan(found.logits).any(-1), np.nan, 0.)
    before = keep[:, t]
    columns.append((labels.copy(), nan.copy(), macs.copy()))
  return [np.stack(x)[:, None] for x in zip(*columns)]


def _labels(system, outputs):
  """Predictions [n] of outputs [n, K], NumPy."""
  if np.isnan(outputs).any():
    raise ValueError('logits of the full model are NaN; check that the model '
                     'has not diverged')
  return outputs.argmax(-1) if system.target is None else outputs[:, 0]
