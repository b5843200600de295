"""Watches whether a calibrated model still agrees with the full one."""

from absl import logging
import numpy as np

from adavit_jax.promise import drift
from adavit_jax.promise import risks


class Watch:
  """Runs the full model on a random share of the images of a stream.

  While the disagreement with the full model is at most its bound, the
  probability that an alarm is ever raised is at most 1 - confidence, however
  often one looks. Use it from one thread.

  Attributes:
    alarm: number of images that were seen when the disagreement was found to
      exceed the bound, or None.
    num_seen: number of images seen.
  """

  def __init__(self, clf, *, share=0.1, bound=None, confidence=None, seed=0):
    """Starts to watch.

    Args:
      clf: `Classifier` or `CascadeClassifier`.
      share: of the images on which the full model runs too, in (0, 1].
      bound: of the disagreement; None for the promise's. Losses of a regression
        above the promise's `loss_bound`, or without one the standard deviation
        of the target, count as that.
      confidence: in (0, 1); None for the promise's, or 0.95 without one.
      seed: of the choice of images.

    Raises:
      ValueError: if no bound is given, and the classifier has no promise or no
        thresholds passed; or an argument is out of range.
    """
    promise = clf.promise
    if bound is None and not (promise and promise.passed):
      raise ValueError('clf has no thresholds with a promise to watch; call '
                       'adavit_jax.calibrate first, or give a bound')
    if not 0 < share <= 1:
      raise ValueError(f'share={share} must be in (0, 1]')
    self._clf, self._share = clf, share
    self._loss = risks.create(
        risks.UNLABELED, target=clf.system.target, labeled=False,
        bound=promise.loss_bound if promise and promise.unit else None)
    if bound is None:
      bound = promise.disagreement
    if confidence is None:
      confidence = promise.confidence if promise else 0.95
    self._limit = drift.LowerLimit(bound, confidence, self._loss.bound)
    self._rng = np.random.default_rng(seed)
    self.num_seen, self.alarm = 0, None

  def __repr__(self):
    return (f'Watch(num_seen={self.num_seen}, num_checked={self.num_checked}, '
            f'disagreement={self.disagreement:.4g}, '
            f'at_least={self.at_least:.4g}, bound={self.bound:.4g}, '
            f'alarm={self.alarm})')

  @property
  def bound(self):
    """Bound of the disagreement."""
    return self._limit.bound

  @property
  def num_checked(self):
    """Number of images on which the full model ran."""
    return self._limit.num

  @property
  def disagreement(self):
    """Mean disagreement on the images that were checked."""
    return self._limit.mean

  @property
  def at_least(self):
    """Lower confidence limit of the largest disagreement so far."""
    return self._limit.limit

  def __call__(self, images):
    """Classifies images as the classifier does, and checks some of them.

    Args:
      images: uint8 [B, S, S, C].

    Returns:
      The classifier's prediction.
    """
    prediction = self._clf(images)
    self.check(images, prediction.labels)
    return prediction

  def check(self, images, labels):
    """Checks a random share of images that the classifier has classified.

    Args:
      images: uint8 [B, S, S, C].
      labels: its predictions, [B].

    Returns:
      Whether an alarm has been raised, now or before.
    """
    chosen = np.flatnonzero(self._rng.random(len(images)) < self._share)
    if len(chosen):
      outputs = self._clf.full(np.asarray(images)[chosen])
      full = outputs[:, 0] if self._loss.unit else outputs.argmax(-1)
      labels = np.asarray(labels)[chosen]
      # Non-numeric outputs count as the largest loss.
      numeric = np.isfinite(outputs).all(-1) & np.isfinite(labels)
      first = self._limit.update(np.where(
          numeric, self._loss.of(labels, full), self._loss.bound))
      if first is not None:
        self.alarm = self.num_seen + int(chosen[first - 1]) + 1
        logging.warning(
            'after %d images, %d of them checked: the disagreement with the '
            'full model is at least %.4g, above its bound of %.4g; calibrate '
            'again on images of now', self.alarm, self.num_checked,
            self.at_least, self.bound)
    self.num_seen += len(images)
    return self.alarm is not None


def watch(clf, *, share=0.1, bound=None, confidence=None, seed=0):
  """Watches a calibrated classifier on a stream of images, see `Watch`."""
  return Watch(clf, share=share, bound=bound, confidence=confidence, seed=seed)
