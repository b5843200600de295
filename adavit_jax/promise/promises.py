"""A promise about thresholds: what was tested, on how many images."""

import math
from typing import NamedTuple

from adavit_jax.promise import request
from adavit_jax.promise import risks
from adavit_jax.promise import testing

_LOSSES = {
    'harm': 'images that the full model classifies correctly and the adaptive '
            'one does not',
    'gap': 'loss of accuracy',
    'disagreement': 'images that the two models classify differently',
}
_NUMBERS = {
    'error': 'mean increase of the absolute error',
    'disagreement': 'mean difference between the two predictions',
}


class Promise(NamedTuple):
  """What thresholds lose against the full model, with a confidence.

  With probability at least `confidence` over the draw of the held-out images,
  the expected loss of an image like them is at most `risk`.

  Attributes:
    kind: 'harm', 'gap', 'disagreement' or 'error', see `risks.Loss`.
    risk: a share of the images; for numbers in their unit.
    confidence: in (0, 1).
    unit: '' for classes.
    loss_bound: larger losses of an image count as this one.
    num_images: held-out images.
    num_tested: those that tested the thresholds; the others found them.
    knob: name of the policy's number, 'threshold' or 'price', or None without
      a policy.
    number: of the policy: if it keeps all layers, None for a price and the
      least threshold that is tried; None without a policy.
    thresholds: of each exit but the last, or None without exits.
    rule: of the exits, or None.
    passed: whether thresholds passed the test; if not, these let no image leave
      early and drop no layer.
    observed: mean loss of the images of the test under these thresholds; if
      none passed, under the first that was tested.
    limit: upper confidence limit of the expected loss, as if no other
      thresholds had been tested; at most `risk`. 0 if none passed. What is
      promised is `risk`.
    macs: mean MACs of these images.
    full_macs: MACs of the full model, without the layers that a static mask
      drops.
    share_early: share of these images that leave before the last exit; None
      without exits.
    disagreement: upper limit of the disagreement with the full model, for
      `adavit_jax.watch`; it and the promise hold together with probability of
      at least 2 confidence - 1.
    more_images: if none passed, how many more images would be needed, about;
      None if no number would do.
  """
  kind: str
  risk: float
  confidence: float
  unit: str
  loss_bound: float
  num_images: int
  num_tested: int
  knob: str | None
  number: float | None
  thresholds: tuple[float, ...] | None
  rule: str | None
  passed: bool
  observed: float
  limit: float
  macs: float
  full_macs: float
  share_early: float | None
  disagreement: float
  more_images: int | None

  def as_dict(self):
    """Converts to a dict of numbers and lists for JSON."""
    thresholds = self.thresholds and list(self.thresholds)
    return dict(self._asdict(), thresholds=thresholds)

  @classmethod
  def from_dict(cls, fields):
    """Makes a `Promise` of `as_dict()`."""
    thresholds = fields['thresholds'] and tuple(fields['thresholds'])
    return cls(**dict(fields, thresholds=thresholds))

  def __str__(self):
    """The promise as one sentence."""
    what = (_NUMBERS if self.unit else _LOSSES)[self.kind]
    amount = lambda x: f'{x:.3g} {self.unit}' if self.unit else f'{x:.2%}'
    if self.passed:
      early = ('' if self.share_early is None else
               f', {self.share_early:.1%} of the images leave early')
      return (f'With {self.confidence:.4g} confidence at most '
              f'{amount(self.risk)} {what}, at '
              f'{self.macs / self.full_macs:.3f} of the MACs{early} '
              f'({amount(self.observed)} observed on {self.num_tested} images)')
    more = ('no number of images would do'
            if self.more_images is None else
            f'about {self.more_images} more images would be needed')
    return (f'No image leaves early and no layer is dropped: the safest '
            f'thresholds had {amount(self.observed)} {what} on '
            f'{self.num_tested} images, which does not show at most '
            f'{amount(self.risk)} with {self.confidence:.4g} confidence; '
            f'{more}')


def make(recorded, risk, confidence, loss, *, labels=None, num_classes=None,
         seed=0):
  """Finds thresholds with a promise.

  Args:
    recorded: `Recorded` of n held-out images.
    risk: see `Promise`.
    confidence: see `Promise`.
    loss: `risks.Loss`.
    labels: [n], for losses that read them.
    num_classes: K; None for numbers.
    seed: of the order of the images, see `testing.run`.

  Returns:
    `Promise`.

  Raises:
    ValueError: if outputs are NaN, the images are too few, or risk, confidence
      or labels are invalid.
  """
  request.check_range(risk, confidence, loss)
  request.check_number(recorded.num, recorded.confidence.shape[:2],
                       recorded.rule, loss, risk, confidence)
  recorded.check()
  if labels is not None:
    labels = request.check_labels(labels, recorded.num, num_classes)
  tested = testing.run(recorded, loss, risk, confidence, labels=labels,
                       num_classes=num_classes, seed=seed)
  num_exits = recorded.confidence.shape[1]
  passed = tested.setting is not None
  setting = tested.setting if passed else recorded.never
  part = recorded.take(tested.images)
  prediction, macs = part.outcome(setting)
  number = recorded.policy[setting.policy]
  return Promise(
      kind=loss.kind, risk=float(risk), confidence=float(confidence),
      unit=loss.unit, loss_bound=loss.bound, num_images=recorded.num,
      num_tested=len(tested.images),
      knob=recorded.knob,
      number=None if number is None else float(number),
      thresholds=tuple(setting.exits.tolist()) if num_exits > 1 else None,
      rule=recorded.rule, passed=passed, observed=float(tested.losses.mean()),
      limit=loss.upper_limit(tested.losses, confidence) if passed else 0.,
      macs=float(macs.mean()), full_macs=float(recorded.full_macs),
      share_early=float((part.exits(setting) < num_exits - 1).mean())
      if num_exits > 1 else None,
      disagreement=_disagreement(
          loss, risk, confidence, prediction, part.full, tested.num_settings)
      if passed else 0.,
      more_images=None if passed else _more_images(
          tested, recorded.num, loss, risk, confidence))


def _disagreement(loss, risk, confidence, prediction, full, num_settings):
  """Upper limit that holds for whichever of the settings was chosen."""
  if loss.kind == risks.UNLABELED:
    return float(risk)
  loss = loss._replace(kind=risks.UNLABELED)
  return loss.upper_limit(loss.of(prediction, full),
                          1 - (1 - confidence) / num_settings)


def _more_images(tested, num, loss, risk, confidence):
  if not tested.num_settings:
    return None
  needed = loss.images_for(tested.losses, risk, confidence)
  if needed is None:
    return None
  # Losses in another order may pass.
  return max(1, math.ceil(needed * num / len(tested.images)) - num)
