"""Held-out images with their confidence, score and MACs at each exit."""

import numpy as np

from adavit_jax.exits import confidence as confidence_lib


class HeldOut:
  """Held-out images, sorted by confidence at each exit.

  Args as in `calibrate.evaluate`.

  Attributes:
    confidences: [E, n] float64.
    scores: [E, n] float64.
    macs: MACs of each image up to each exit, [E, n] float64.
    num_exits: E.
    num: n.
  """

  def __init__(self, confidences, correct, stage_macs):
    self.confidences = np.asarray(confidences, np.float64)
    self.scores = np.asarray(correct, np.float64)
    macs = np.asarray(stage_macs, np.float64)
    shape = self.confidences.shape
    if (len(shape) != 2 or not self.confidences.size
        or self.scores.shape != shape or macs.shape not in (shape, shape[:1])):
      raise ValueError(
          f'confidences {shape}, correct {self.scores.shape} and stage_macs '
          f'{macs.shape} must be [E, n], [E, n] and [E] or [E, n], n > 0')
    macs = macs if macs.ndim == 2 else macs[:, None]
    self.macs = np.broadcast_to(np.cumsum(macs, 0), shape)
    if np.isnan(self.confidences).any() or np.isnan(self.scores).any():
      raise ValueError('confidences and correct must not be NaN; check that '
                       'the model has not diverged')
    self.num_exits, self.num = shape
    # [E - 1, n], the most confident images first.
    self._order = np.argsort(-self.confidences[:-1], axis=1, kind='stable')

  def totals(self, thresholds):
    """Total (score, MACs) over the images under thresholds [E - 1]."""
    exits = confidence_lib.choose(self.confidences, thresholds)
    images = np.arange(self.num)
    return self.scores[exits, images].sum(), self.macs[exits, images].sum()

  def sweep(self, thresholds, exit_index):
    """Tries every useful threshold of one exit with the others fixed.

    Args:
      thresholds: [E - 1]; that of the exit itself is not read.
      exit_index: e < E - 1.

    Returns:
      (thresholds [c], total score [c], total MACs [c]), with descending
      thresholds: from no image to every image that reaches the exit.
    """
    gone, exits = self._elsewhere(thresholds, exit_index)
    # The m images that reach the exit and may leave, the most confident first.
    rows = self._order[exit_index]
    rows = rows[~gone[rows]
                & (self.confidences[exit_index, rows] > confidence_lib.ALWAYS)]
    values = self.confidences[exit_index, rows]  # [m]

    # [c], from 0 to m: images with equal confidence leave together.
    last_of_equals = np.append(
        values[1:] < values[:-1], [True] * bool(len(rows)))
    num_leaving = np.flatnonzero(np.append(True, last_of_equals))

    def totals(table):  # [E, n] -> [c]
      elsewhere = table[exits, np.arange(self.num)]  # [n]
      change = table[exit_index, rows] - elsewhere[rows]  # [m]
      return elsewhere.sum() + np.append(0., np.cumsum(change))[num_leaving]

    return (_between(values)[num_leaving], totals(self.scores),
            totals(self.macs))

  def _elsewhere(self, thresholds, exit_index):
    """Returns where images leave if none leaves at one exit.

    Returns:
      (whether an image leaves before that exit [n], the exit where it leaves
      [n]).
    """
    leaves = self.confidences[:-1] > thresholds[:, None]  # [E - 1, n]
    before = leaves[:exit_index].any(0)
    later = np.concatenate([leaves[exit_index + 1:],
                            np.ones((1, self.num), bool)])  # [E - 1 - e, n]
    return before, np.where(
        before, leaves.argmax(0), exit_index + 1 + later.argmax(0))


def _between(values):
  """Thresholds at which the first 0 to m images leave, [m + 1].

  Args:
    values: descending confidences, [m]. A threshold is midway between two.
  """
  thresholds = np.concatenate(
      [[confidence_lib.NEVER], values[:-1] / 2 + values[1:] / 2,
       [confidence_lib.ALWAYS]])
  return thresholds[:len(values) + 1]
