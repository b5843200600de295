"""p-values of the hypothesis that an expected loss exceeds a risk.

Small values speak for an expected loss of at most the risk. Images are
independent draws from the images of use. `binomial` and `paired` are exact;
`betting` holds for every distribution of bounded losses.
"""

import functools

import numpy as np
import scipy  # which imports scipy.stats, for a second, at its first use
from scipy import special

# Share of the largest bet, c in `log_wealth`; the wealth is a mixture of them.
BETS = np.geomspace(2e-3, .999, 16)

# Paired test: probability that the share of pairs that differ lies above the
# values tried, and number of values tried (Berger and Boos, 1994).
_OUTSIDE, _TRIED = 1e-4, 64
# Probability of numbers of pairs that are not added up.
_TAIL = 1e-7
LEAST_PAIRED = _OUTSIDE + _TAIL  # no p-value of `paired` is less


def binomial(count, num, risk):
  """Exact p-value of 0/1 losses (Angelopoulos et al., 2021).

  Args:
    count: sum of the losses.
    num: number of images.
    risk: in (0, 1).
  """
  return float(special.bdtr(count, int(num), risk))


def binomial_limit(count, num, confidence):
  """Upper limit of Clopper and Pearson, where `binomial` is 1 - confidence."""
  if count >= num:
    return 1.
  return float(scipy.stats.beta.ppf(confidence, count + 1, num - count))


@functools.lru_cache(maxsize=100_000)
def paired(harmed, helped, num, risk):
  """Exact p-value of a loss of accuracy, a signed loss of -1, 0 or 1.

  The test of non-inferiority for paired proportions, unconditional: pairs are
  ordered by Tango's score statistic (1998), and the p-value is the largest
  probability over the share of pairs that differ, which is unknown (Hsueh et
  al., 2001). That share is searched on a grid within its confidence interval,
  whose error is added (Berger and Boos, 1994).

  Args:
    harmed: number of images that only the full model classifies correctly.
    helped: number of images that only the adaptive model does.
    num: number of images.
    risk: in (0, 1).
  """
  most = binomial_limit(harmed + helped, num, 1 - _OUTSIDE)
  if most < risk:  # the gap is at most the share of pairs that differ
    return LEAST_PAIRED
  share = risk + (most - risk) * np.linspace(0, 1, _TRIED)[:, None] ** 2
  p_harm, p_help = (share + risk) / 2, (share - risk) / 2
  j = np.arange(scipy.stats.binom.isf(_TAIL, num, p_help.max()) + 1)
  # The most harmed images among pairs at least as extreme; -1 for none.
  i = _most_harmed(j, num, risk, _score(harmed, helped, num, risk))
  harms = np.where(i < 0, 0., special.bdtr(
      np.maximum(i, 0), (num - j).astype(int),
      np.minimum(p_harm / (1 - p_help), 1)))
  total = scipy.stats.binom.pmf(j, num, p_help) * harms
  return float(min(total.sum(1).max() + LEAST_PAIRED, 1))


def _score(harmed, helped, num, risk):
  """Tango's statistic: larger is less loss of accuracy than `risk`."""
  b = (harmed + helped) * (1 - risk) - 2 * risk * (num - harmed)
  # Maximum likelihood of the probability to help, if the gap equals `risk`.
  p_help = (b + np.sqrt(b * b + 8 * num * helped * risk * (1 - risk))) / (
      4 * num)
  p_help = np.maximum(p_help, 0)
  return (num * risk - (harmed - helped)) / np.sqrt(
      num * (2 * p_help + risk * (1 - risk)))


def _most_harmed(helped, num, risk, score):
  """For each `helped` [j], the largest `harmed` with at least this score.

  The score falls as `harmed` rises; -1 if no number reaches it.
  """
  low = np.full(len(helped), -1.)
  high = num - helped + 1.
  while (high - low > 1).any():
    middle = np.floor((low + high) / 2)
    enough = _score(middle, helped, num, risk) >= score - 1e-9
    moves = high - low > 1
    low = np.where(moves & enough, middle, low)
    high = np.where(moves & ~enough, middle, high)
  return low


def log_wealth(x, mean):
  """Logarithm of the wealth of bets that x exceeds a mean, after each of them.

  The bets of Waudby-Smith and Ramdas (2024), a mixture of fixed ones. While the
  expectation of every x is at most `mean`, the wealth exceeds 1 / p at any time
  with probability at most p.

  Args:
    x: [n], not negative.
    mean: positive.

  Returns:
    [n].
  """
  gains = np.log1p(BETS * (np.asarray(x, np.float64)[:, None] / mean - 1))
  return special.logsumexp(np.cumsum(gains, 0), axis=1) - np.log(len(BETS))


def betting(losses, risk, bound):
  """p-value of losses of at most `bound`, for any distribution of them.

  Args:
    losses: [n], in random order.
    risk: below `bound`.
    bound: the largest possible loss; losses may be negative without limit.
  """
  wealth = log_wealth(bound - np.asarray(losses), bound - risk)
  return float(np.exp(-max(wealth.max(), 0.)))


def limit(p_value, p, bound):
  """The least risk in (0, bound) whose p-value is at most p, by bisection.

  Args:
    p_value: falling function of the risk.
    p: in (0, 1).
    bound: the answer if no risk below it has such a p-value.
  """
  low, high = 0., bound
  for _ in range(20):
    middle = (low + high) / 2
    low, high = (low, middle) if p_value(middle) <= p else (middle, high)
  return high
