"""Thresholds for given shares of images at each exit, without an accuracy term.

DVT draws its trade-off of accuracy and MACs with them: share k is proportional
to q^k for 59 values of q. `calibrate.curve` instead searches for the thresholds
of the highest accuracy.
"""

import numpy as np

from adavit_jax.exits import confidence as confidence_lib

NUM_POINTS = 59


def geometric(num_exits, num=NUM_POINTS):
  """Shares proportional to q^k at exits k = 1 to E (DVT, evaluation code).

  Args:
    num_exits: E.
    num: number of points; q is p / 20 for p = 1 to num, so that 20 gives equal
      shares.

  Returns:
    [num, E], rows that sum to 1.
  """
  q = np.arange(1, num + 1)[:, None] / 20
  shares = q ** np.arange(1, num_exits + 1)
  return shares / shares.sum(1, keepdims=True)


def thresholds(confidences, shares):
  """Greedy quantiles: the most confident images left leave at each exit.

  Exit k lets floor(n * share) images leave, and more if several have the
  confidence of the last of them. If fewer than that are left, no image leaves
  at this exit, as in DVT's code.

  Args:
    confidences: [E, n] of held-out images, higher is more confident.
    shares: [E], shares of the images; the last exit takes the rest.

  Returns:
    [E - 1] float64; an image leaves above a threshold, which is midway between
    the confidences of two images.

  Raises:
    ValueError: if shapes do not match, or shares are negative or sum to more
      than 1.
  """
  confidences = np.asarray(confidences, np.float64)
  shares = np.asarray(shares, np.float64)
  if confidences.ndim != 2 or shares.shape != confidences.shape[:1]:
    raise ValueError(f'shares {shares.shape} and confidences '
                     f'{confidences.shape} must be [E] and [E, n]')
  if not (shares >= 0).all() or not shares.sum() <= 1 + 1e-6:
    raise ValueError(f'shares={shares.tolist()} must not be negative, and sum '
                     f'to at most 1')
  num = confidences.shape[1]
  left, found = np.ones(num, bool), []
  for row, share in zip(confidences[:-1], shares[:-1]):
    # 0.29 * 100 is below 29 in floating point.
    leave = int(np.floor(num * share + 1e-6))
    values = np.sort(row[left & (row > confidence_lib.ALWAYS)])[::-1]
    threshold = confidence_lib.NEVER
    if 0 < leave <= len(values):
      last = values[leave - 1]
      below = row[row < last]
      threshold = confidence_lib.ALWAYS
      if len(below):
        threshold = last / 2 + max(below.max(), confidence_lib.ALWAYS) / 2
    left &= row <= threshold
    found.append(threshold)
  return np.array(found)
