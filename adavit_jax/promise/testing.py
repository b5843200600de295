"""Learn then test: the cheapest setting whose risk passes a test.

Settings are tested from safe to cheap until the first that fails, so that no
correction for their number is needed (fixed-sequence testing; Angelopoulos et
al., 2021). With probability at least `confidence` over the draw of the images,
the expected loss of the setting returned is at most `risk`.
"""

from typing import NamedTuple

import numpy as np

from adavit_jax.promise import candidates
from adavit_jax.promise import recorded as recorded_lib


class Tested(NamedTuple):
  """Result of a test.

  Attributes:
    setting: the cheapest `Setting` that passed and saves MACs, or None.
    num_settings: number of settings in the order.
    losses: losses of the images of the test [m]; if none passed, of the first
      setting that saves MACs, or 0.
    images: indices of these images, [m].
  """
  setting: recorded_lib.Setting | None
  num_settings: int
  losses: np.ndarray
  images: np.ndarray


def run(recorded, loss, risk, confidence, *, labels=None, num_classes=None,
        seed=0):
  """Finds the cheapest setting with a promise.

  Args:
    recorded: `Recorded` of n images, drawn independently.
    loss: `risks.Loss`.
    risk: the largest expected loss, in the unit of the loss.
    confidence: in (0, 1).
    labels: [n], for losses that read them.
    num_classes: K, for classes.
    seed: of the order of the images, see `settings`.

  Returns:
    `Tested`.
  """
  return test(recorded, loss, risk, confidence, *settings(
      recorded, loss, labels=labels, num_classes=num_classes, seed=seed),
      labels=labels)


def settings(recorded, loss, *, labels=None, num_classes=None, seed=0):
  """Returns settings to test, from safe to cheap, and the images for it.

  With several thresholds, a random third of the images finds them and the
  others test them; a single threshold is tested on all of them.

  Args:
    recorded: see `run`.
    loss: see `run`.
    labels: see `run`.
    num_classes: see `run`.
    seed: see `run`.

  Returns:
    (list of `Setting`, indices of the images that test them [m]).
  """
  order = np.random.default_rng(seed).permutation(recorded.num)
  known = candidates.in_known_order(recorded, num_classes)
  if known is not None:
    return known, order
  num = candidates.num_search(recorded.num)
  search = order[:num]
  part = recorded.take(search)
  losses = loss.of(part.prediction, part.full,
                   None if labels is None else labels[search])
  return candidates.frontier(part, losses), order[num:]


def test(recorded, loss, risk, confidence, settings, images, *, labels=None):
  """Tests settings in their order until the first that fails.

  Args:
    recorded: see `run`.
    loss: see `run`.
    risk: see `run`.
    confidence: see `run`.
    settings: list of `Setting` that were not found on these images.
    images: indices of the images that test them, [m].
    labels: see `run`.

  Returns:
    `Tested`.
  """
  part = recorded.take(images)
  labels = None if labels is None else labels[images]
  most = part.outcome(part.never)[1].mean()
  passed, losses = None, None
  for setting in settings:
    prediction, macs = part.outcome(setting)
    if macs.mean() >= most:  # as the full model, which has no loss
      continue
    here = loss.of(prediction, part.full, labels)
    if losses is None:
      losses = here
    if loss.p_value(here, risk) > 1 - confidence:
      break
    passed, losses = setting, here
  if losses is None:
    losses = np.zeros(len(images))
  return Tested(passed, len(settings), losses, images)


def num_tested(shape, rule, num):
  """The number of n images that test settings.

  Args:
    shape: (T, E), see `candidates.has_known_order`.
    rule: of the exits, or None.
    num: n.
  """
  known = candidates.has_known_order(shape, rule)
  return num if known else num - candidates.num_search(num)
