"""Rows of a report and their table, by hand."""

import dataclasses

from adavit_jax import cost
from adavit_jax.evaluation import evaluator
from adavit_jax.models.actions import Actions
from adavit_jax.report import rows as rows_lib
from adavit_jax.report import table
import numpy as np
import pytest

# Stem 10, encoders of MSA 4 and MLP 2, of which one is fixed, head 6.
SPEND = cost.Cost(
    always=10 + 6 + 6, encoders=6, msa=(4, 4), mlp=(2, 2), policy=1,
    stages=(35,), layer_stages=Actions((0, 0), (0, 0)))


def _outputs(msa, mlp, prediction, loss):
  prediction = np.asarray(prediction)
  return evaluator.Outputs(
      prediction, prediction == 0, np.asarray(loss),
      Actions(*(np.asarray(a, np.float32) for a in (msa, mlp))))


def test_adaptive_row_by_hand():
  assert SPEND.dense == 10 + 3 * 6 + 6 == 34
  out = _outputs([[1, 1], [0, 0], [1, 0]], [[1, 1], [0, 0], [0, 0]], [0, 1, 0],
                 [.1, .2, .3])
  dense = _outputs(*[np.ones((3, 2))] * 2, [0, 0, 0], [.9, .1, .5])
  row = rows_lib.adaptive_row(out, dense, SPEND, {'hard': [True, False, False]})
  assert row['accuracy'] == pytest.approx(2 / 3)
  assert row['loss'] == pytest.approx(.2)
  macs = [10 + 6 + 12 + 6 + 1, 10 + 6 + 6 + 1, 10 + 6 + 4 + 6 + 1]
  assert row['macs'] == pytest.approx(np.mean(macs))
  assert row['macs_ratio'] == pytest.approx(np.mean(macs) / 34)
  assert row['encoder_macs_ratio'] == pytest.approx(
      (np.mean(macs) - 16) / 18)
  assert row['unique_actions'] == 3
  assert row['kept_msa_mean'] == pytest.approx(1)
  assert row['kept_msa_std'] == pytest.approx(np.std([2, 0, 1]))
  assert row['kept_mlp_mean'] == pytest.approx(2 / 3)
  assert row['kept_mlp_std'] == pytest.approx(np.std([2, 0, 0]))
  assert row['kept_std'] == pytest.approx(np.std([4, 0, 1]))
  assert row['keep_rate'] == dict(
      msa=pytest.approx([2 / 3, 1 / 3]), mlp=pytest.approx([1 / 3, 1 / 3]))
  assert row['difficulty_correlation'] == pytest.approx(1)
  assert row['agreement'] == pytest.approx(2 / 3)
  assert (row['kept_easy'], row['kept_hard']) == (0.5, 4)
  assert [row[f'kept_{name}'] for name in (
      'easy_msa', 'easy_mlp', 'hard_msa', 'hard_mlp')] == [0.5, 0, 2, 2]


def test_rows_of_layers_that_differ_in_number_and_macs():
  spend = dataclasses.replace(SPEND, msa=(4,), mlp=(2, 3, 5))
  assert spend.dense == 22 + 14
  out = _outputs([[1], [0]], [[0, 1, 1], [0, 0, 1]], [0, 0], [.1, .2])
  row = rows_lib.adaptive_row(
      out, _outputs([[1]] * 2, np.ones((2, 3)), [0, 0], [.1, .2]), spend)
  assert row['macs'] == pytest.approx(22 + 1 + (4 + 3 + 5 + 5) / 2)
  assert (row['kept_msa_mean'], row['kept_mlp_mean']) == (.5, 1.5)
  assert row['kept_std'] == np.std([3, 1])
  assert row['keep_rate'] == dict(msa=[.5], mlp=[0, .5, 1])


@pytest.mark.parametrize('msa, mlp', [((4, 4), (2, 2)), ((4,), (2, 3, 5))])
def test_random_actions_meet_the_budget_in_the_mean(msa, mlp):
  spend = dataclasses.replace(SPEND, msa=msa, mlp=mlp, policy=0)
  keep = rows_lib.budget_keep(spend, 0.8)
  expected = 10 + 6 + 6 + keep * (sum(msa) + sum(mlp))
  assert expected / spend.dense == pytest.approx(0.8)


@pytest.mark.parametrize('msa, mlp', [((4, 4), (2, 2)), ((4,), (2, 3, 5))])
def test_stochastic_actions_meet_the_budget_in_the_mean(msa, mlp):
  spend = dataclasses.replace(SPEND, msa=msa, mlp=mlp, policy=0)
  final = rows_lib.survival_final(spend, 0.8)
  expected = 10 + 6 + 6
  for macs in (msa, mlp):
    depth = np.arange(1, len(macs) + 1) / len(macs)
    expected += ((1 - (1 - final) * depth) * macs).sum()
  assert expected / spend.dense == pytest.approx(0.8)
  assert rows_lib.survival_final(spend, 0.1) == 0


def test_draws_are_averaged():
  assert rows_lib.mean_rows([dict(a=1., b=0.), dict(a=4., b=1.)]) == dict(
      a=2.5, b=.5)


def test_interpolation_reads_between_two_masks():
  rows = [dict(macs_ratio=1., accuracy=.9), dict(macs_ratio=.5, accuracy=.7)]
  assert rows_lib.interpolate(rows, .6)['accuracy'] == pytest.approx(.74)


def test_a_table_to_the_letter():
  row = dict(accuracy=.875, macs=1.25e6, macs_ratio=.5, encoder_macs_ratio=.25)
  large = dict(row, accuracy=1., macs=4e9)
  assert table.format_rows([('dense', large), ('adaptive', row)]) == (
      '          accuracy %  MACs/image  of dense  of encoders\n'
      '-------------------------------------------------------\n'
      'dense         100.00      4.00 G     0.500        0.250\n'
      'adaptive       87.50      1.25 M     0.500        0.250')


def test_what_is_said_of_a_policy_to_the_letter():
  row = dict(kept_msa_mean=2.5, kept_msa_std=.5, kept_mlp_mean=1.25,
             kept_mlp_std=.75, unique_actions=7, difficulty_correlation=.375,
             agreement=.9, threshold=.625, kept_easy=3., kept_hard=4.5,
             kept_easy_msa=2., kept_easy_mlp=1., kept_hard_msa=2.5,
             kept_hard_mlp=2.)
  lines = (
      'kept: MSA 2.50 ± 0.50 of 3, MLP 1.25 ± 0.75 of 4\n'
      'distinct action vectors: 7\n'
      'rank correlation of kept layers with the dense loss: 0.38\n'
      'agreement with the dense prediction: 90.00 %\n'
      'threshold: 0.625')
  split = ('\nkept on easy images: 3.00, MSA 2.00, MLP 1.00'
           '\nkept on hard images: 4.50, MSA 2.50, MLP 2.00')
  assert table.format_policy(row, (3, 4)) == lines + split
  del row['kept_easy']
  row['difficulty_correlation'] = None
  assert table.format_policy(row, (3, 4)) == lines.replace('0.38', '-')
