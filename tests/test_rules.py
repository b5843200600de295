"""Rules that remember the exits before, against loops over the images."""

from adavit_jax.exits import calibrate as calibrate_lib
from adavit_jax.exits import confidence as confidence_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

E, B = 6, 40
patience = confidence_lib.RULES['patience']
agreement = confidence_lib.RULES['agreement']


def _logits():
  """[E, B, 3] of which many exits in a row agree."""
  rng = np.random.default_rng(0)
  bias = 2 * rng.normal(size=(B, 3))
  return (bias + rng.normal(size=(E, B, 3))).astype(np.float32)


def _run(classes):
  """The length of the run of equal classes that a list ends with."""
  differ = [c != classes[-1] for c in classes[::-1]]
  return differ.index(True) if any(differ) else len(classes)


def test_patience_counts_exits_that_agree():
  logits = _logits()
  classes = logits.argmax(-1).tolist()
  columns = list(zip(*classes))
  want = [[_run(column[:e + 1]) for column in columns] for e in range(E)]
  assert set(np.ravel(want)) == set(range(1, E + 1))
  got = confidence_lib.confidences(patience, logits)
  np.testing.assert_array_equal(got, want)
  assert got.dtype == jnp.float32


def test_an_image_leaves_once_k_exits_agree():
  logits = _logits()
  classes = logits.argmax(-1)
  got = confidence_lib.confidences(patience, logits)
  for k in range(1, E + 1):
    want = [
        next((e for e in range(k - 1, E)
              if len(set(classes[e - k + 1:e + 1, i])) == 1), E - 1)
        for i in range(B)]
    np.testing.assert_array_equal(confidence_lib.choose(got, k - .5), want)
    assert min(want) >= k - 1


def test_agreement_is_the_difference_to_the_exit_before():
  outputs = np.random.default_rng(0).normal(size=(E, B, 2)).astype(np.float32)
  got = confidence_lib.confidences(agreement, outputs)
  want = np.full((E, B), -np.inf, np.float32)
  want[1:] = -np.abs(outputs[1:] - outputs[:-1]).max(-1)
  np.testing.assert_array_equal(got, want)
  assert got.dtype == jnp.float32


def test_an_image_leaves_within_the_tolerance_and_never_at_once():
  outputs = np.float32([[10, 0, 3], [12, 0, 9], [12.5, 7, 15]])[..., None]
  got = confidence_lib.confidences(agreement, outputs)
  choose = lambda t: confidence_lib.choose(got, t).tolist()
  assert choose(-1.) == [2, 1, 2]
  assert choose(-2.5) == [1, 1, 2]
  # A difference as large as the tolerance is too large.
  assert choose(-2.) == [2, 1, 2]
  assert choose(confidence_lib.ALWAYS) == [1, 1, 1]


def test_agreement_is_measured_in_float32():
  before, after = jnp.bfloat16([[256.]]), jnp.bfloat16([[1.0078125]])
  _, memory = agreement(before, None)
  got, _ = agreement(after, memory)
  assert got == -254.9921875


def test_memory_goes_with_its_image():
  """The cascade moves the rows of the images that stay."""
  for rule in (patience, agreement):
    logits = jnp.asarray(_logits())
    want = confidence_lib.confidences(rule, logits)
    _, memory = rule(logits[0], None)
    _, memory = rule(logits[1], memory)
    rows = jnp.array([7, 3, 30])
    memory = jax.tree.map(lambda x: x[rows], memory)
    got, _ = jax.jit(rule)(logits[2, rows], memory)
    np.testing.assert_array_equal(got, want[2, rows])


def test_calibration_takes_a_first_exit_that_nobody_leaves_at():
  rng = np.random.default_rng(1)
  truth = rng.normal(size=(1, 200)) * 20
  noise = rng.normal(size=(3, 200)) * np.array([[8.], [4.], [1.]])
  outputs = (truth + noise).astype(np.float32)
  confidence = confidence_lib.confidences(agreement, outputs[..., None])
  score = -np.abs(outputs - truth)
  middle = calibrate_lib.calibrate(confidence, score, [1, 1, 1], max_macs=2.5)
  assert middle.shares[0] == 0 and .5 <= middle.shares[1] < .6
  assert score[1].mean() < middle.accuracy < score[2].mean()


def test_rules_are_for_classification_or_for_regression():
  assert confidence_lib.rules_for(regression=True) == ('agreement',)
  assert confidence_lib.rules_for(regression=False) == (
      'entropy', 'max_probability', 'margin', 'patience')


def test_thresholds_out_of_the_range_of_a_rule():
  confidence_lib.check_range('entropy', [-0.3, np.inf, -np.inf])
  confidence_lib.check_range('patience', [1.5, 4.5])
  with pytest.raises(ValueError, match='^threshold.* -0.3 for 0.3'):
    confidence_lib.check_range('entropy', 0.3)
  with pytest.raises(ValueError, match="^threshold.*'margin', 0 to 1"):
    confidence_lib.check_range('margin', [0.5, -0.5])
  confidence_lib.check_range('margin', np.nan)
  confidence_lib.check_range('own', [1e9, -1e9])  # not in any table
  with pytest.raises(ValueError, match='^thresholds=nan'):
    confidence_lib.check_thresholds(np.nan, 3)


@pytest.mark.parametrize('texts, want', [
    (None, None), (['-0.3'], -0.3), (['0'], 0.),
    (['0.5', '1e-2'], [0.5, 0.01])])
def test_thresholds_of_a_flag(texts, want):
  assert confidence_lib.parse_thresholds(texts) == want


@pytest.mark.parametrize('texts, given', [
    (['0.5', 'abc'], '0.5,abc'), ([], ' must')])
def test_a_threshold_that_is_no_number(texts, given):
  with pytest.raises(ValueError, match=f'^--threshold={given}'):
    confidence_lib.parse_thresholds(texts)
