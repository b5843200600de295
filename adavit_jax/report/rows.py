"""Rows of a report: one model under different ways to choose layers."""

import numpy as np
import scipy  # which imports scipy.stats, for a second, at its first use

from adavit_jax.models.actions import Actions
from adavit_jax.policies import fixed


def row(outputs, cost):
  """Returns accuracy and cost of one way to choose layers.

  Args:
    outputs: `Outputs` on n images.
    cost: `Cost`, with the policy networks if they ran.

  Returns:
    dict of accuracy, loss, macs (mean per image), macs_ratio (over the dense
    model's) and encoder_macs_ratio (the same without stem and heads).
  """
  actions = outputs.actions
  return dict(
      accuracy=outputs.accuracy,
      loss=float(outputs.loss.mean()),
      macs=float(np.mean(cost.adaptive(actions))),
      macs_ratio=float(np.mean(cost.ratio(actions))),
      encoder_macs_ratio=float(np.mean(cost.encoder_ratio(actions))))


def adaptive_row(outputs, dense, cost, meta=None):
  """Returns `row` with measures of how adaptive a policy is.

  Args:
    outputs: `Outputs` of the policy on n images.
    dense: `Outputs` of the dense model on the same images.
    cost: `Cost` with the policy networks.
    meta: dict of arrays [n] of the split; 'hard' marks hard images.

  Returns:
    `row` plus unique_actions, kept_msa_mean, kept_msa_std, kept_mlp_mean,
    kept_mlp_std, kept_std (both together), difficulty_correlation (Spearman,
    kept layers against the dense model's loss; None if either is constant),
    agreement (share of images with the dense prediction), keep_rate (lists for
    msa and mlp, per layer), and kept_easy and kept_hard if `meta` has 'hard'
    with images of both kinds, also for each kind of layer: kept_easy_msa, ...
  """
  msa, mlp = outputs.actions
  kept = outputs.actions.num_kept
  constant = kept.std() == 0 or dense.loss.std() == 0
  result = dict(
      row(outputs, cost),
      unique_actions=len(np.unique(outputs.actions.keep, axis=0)),
      kept_msa_mean=float(msa.sum(-1).mean()),
      kept_msa_std=float(msa.sum(-1).std()),
      kept_mlp_mean=float(mlp.sum(-1).mean()),
      kept_mlp_std=float(mlp.sum(-1).std()),
      kept_std=float(kept.std()),
      difficulty_correlation=None if constant else float(
          scipy.stats.spearmanr(kept, dense.loss).statistic),
      agreement=float((outputs.prediction == dense.prediction).mean()),
      keep_rate=dict(msa=msa.mean(0).tolist(), mlp=mlp.mean(0).tolist()))
  if meta and 'hard' in meta:
    hard = np.asarray(meta['hard'], bool)
    if 0 < hard.sum() < len(hard):
      for name, rows in (('easy', ~hard), ('hard', hard)):
        result[f'kept_{name}'] = float(kept[rows].mean())
        result[f'kept_{name}_msa'] = float(msa[rows].sum(-1).mean())
        result[f'kept_{name}_mlp'] = float(mlp[rows].sum(-1).mean())
  return result


def budget_keep(cost, macs_ratio):
  """Returns the keep probability at which random actions take `macs_ratio`."""
  num_layers = len(cost.msa), len(cost.mlp)
  none, every = (cost.ratio(Actions(*map(fill, num_layers)))
                 for fill in (np.zeros, np.ones))
  return float(np.clip((macs_ratio - none) / (every - none), 0, 1))


def survival_final(cost, macs_ratio):
  """Returns the survival probability of the last layer for `macs_ratio`.

  Under it, the expected MACs of `fixed.Stochastic` are `macs_ratio` times those
  of the dense model, or as near as probabilities in [0, 1] come.
  """
  num_layers = len(cost.msa), len(cost.mlp)
  low, high = (float(cost.ratio(fixed.survival(num_layers, final)))
               for final in (0., 1.))
  return float(np.clip((macs_ratio - low) / (high - low), 0, 1))


def mean_rows(rows):
  """Returns the mean of each value over rows with the same keys."""
  return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


def interpolate(rows, macs_ratio):
  """Interpolates rows of static masks at `macs_ratio`, as a mixture of two.

  Args:
    rows: rows of masks, in any order.
    macs_ratio: where to interpolate; clipped to the ends of the curve.

  Returns:
    dict of the keys of the rows.
  """
  rows = sorted(rows, key=lambda r: r['macs_ratio'])
  x = [r['macs_ratio'] for r in rows]
  return {k: float(np.interp(macs_ratio, x, [r[k] for r in rows]))
          for k in rows[0]}
