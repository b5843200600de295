"""Budgets against a clock that only the stages move."""

import time

import adavit_jax
from adavit_jax.exits import confidence
from adavit_jax.inference import classifier
from adavit_jax.runtime import anytime
from adavit_jax.runtime import cascade as cascade_lib
from adavit_jax.runtime import stage_times
from adavit_jax.train import state as state_lib
from adavit_jax.train import system as system_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

TAKES = 1., 2., 4.  # milliseconds of a stage for one image
MACS = 10, 20, 40
SIZES = 1, 2, 4


class Machine:
  """What time it is, and how many times slower than usual the machine is."""

  def __init__(self):
    self.now, self.slower, self.ran = 0., 1., []

  def run(self, program, k):
    def timed(images, state):
      if not isinstance(images, jax.core.Tracer):
        self.ran.append(k)
        self.now += 1e-3 * TAKES[k] * len(images) * self.slower
      return program(images, state)
    return timed


@pytest.fixture
def machine(monkeypatch):
  machine = Machine()
  monkeypatch.setattr(time, 'perf_counter', lambda: machine.now)
  return machine


def _stage(k, params, images, carry):
  """Logits grow with each stage, and with the first channel's lead."""
  x = images.mean((1, 2)) if carry is None else carry
  return x, params * (k + 1) * x


def _cascade(machine, num=3, thresholds=confidence.NEVER):
  cascade = cascade_lib.Cascade(
      [lambda *args, k=k: _stage(k, *args) for k in range(num)],
      jnp.ones(()), confidence.RULES['max_probability'], thresholds,
      MACS[:num], sizes=SIZES)
  cascade.programs = [
      machine.run(program, k) for k, program in enumerate(cascade.programs)]
  return cascade


@pytest.fixture
def images():
  rng = np.random.default_rng(0)
  return rng.normal(size=(4, 2, 2, 3)).astype(np.float32)


def _logits(images, e):
  return (e + 1) * images.mean((1, 2))


@pytest.mark.parametrize('budget, e, in_time', [
    (0.5, 0, False), (1., 0, True), (2.99, 0, True), (3., 1, True),
    (6.99, 1, True), (7., 2, True), (float('inf'), 2, True)])
def test_a_stage_starts_only_if_it_ends_in_time(
    machine, images, budget, e, in_time):
  run = anytime.Anytime(_cascade(machine))
  budget += 1e-9 if in_time else 0.  # of rounding
  np.testing.assert_allclose(run.measure(images[:1]), np.cumsum(TAKES))
  del machine.ran[:]
  got = run(images[:1], budget, 0.95)
  assert machine.ran == list(range(e + 1))
  np.testing.assert_array_equal(got.exit, [e])
  np.testing.assert_allclose(got.logits, _logits(images[:1], e), rtol=1e-6)
  np.testing.assert_array_equal(got.labels, got.logits.argmax(-1))
  np.testing.assert_array_equal(got.macs, [sum(MACS[:e + 1])])
  assert got.milliseconds == pytest.approx(sum(TAKES[:e + 1]))
  assert got.in_time == in_time


def test_in_a_batch_the_sure_leave_and_the_others_stop(machine, images):
  sure = np.stack([
      np.sort(p)[-1] for p in np.asarray(jax.nn.softmax(_logits(images, 0)))])
  first = np.sort(sure)[1:3].mean()  # two of four images leave at exit 0
  run = anytime.Anytime(_cascade(machine, thresholds=(first, 1.)))
  assert run.measure(images).shape == (3,)
  # Stage 0 takes 4 ms for four images, stage 1 then 4 ms for two.
  exits = np.where(sure > first, 0, 1)
  for budget, want in ((7.9, np.zeros(4)), (8.1, exits), (15.9, exits),
                       (16.1, 2 * exits)):
    got = run(images, budget, 0.95)
    np.testing.assert_array_equal(got.exit, want)
    for row, e in enumerate(got.exit):
      np.testing.assert_allclose(
          got.logits[row], _logits(images, e)[row], rtol=1e-6)
      assert got.macs[row] == sum(MACS[:e + 1])
    assert got.in_time


def test_a_busy_machine_is_noticed_and_so_is_its_end(machine, images):
  run = anytime.Anytime(_cascade(machine))
  ask = lambda: run(images[:1], 9.9, 0.95)
  assert ask().exit == 2
  machine.slower = 1.9
  late = [not ask().in_time for _ in range(300)]
  # All three stages take 13.3 ms now, two of them 5.7.
  assert 0 < sum(late) < 8 and not any(late[8:])
  assert ask().exit == 1
  # The third stage is refused all that time, but its times are not forgotten.
  machine.slower = 1.
  assert [ask().exit[0] for _ in range(100)][-1] == 2


def test_a_quantile_of_the_times_by_hand():
  times = stage_times.StageTimes(2)
  times.add(0, 4, [2., 4., 4., 4., 6.])  # ratios 0.5, 1, 1, 1, 1.5
  times.add(0, 1, [1.] * 5)
  assert times.base(0, (4, 1)) == 5
  assert times.predict(0, (4,), 0.5) == 4
  assert times.predict(0, (4, 1), 0.95) == 1.5 * 5
  assert times.observe(0, (4, 1), 15.) == 3
  assert times.predict(0, (1,), 0.95) == 3
  times.add(1, 1, [2., 2.])
  times.carry_over(1, 3.)
  assert times.predict(1, (1,), 0.95) == 6 and times.knows(1, 1)
  for _ in range(200):
    times.observe(0, (1,), 1.)
  assert times.predict(0, (1,), 0.999) == 1


def test_what_a_call_measures_is_not_in_its_budget(machine, images):
  run = anytime.Anytime(_cascade(machine))
  got = run(images[:1], 7.1, 0.95)
  assert got.in_time and got.exit == 2 and len(machine.ran) > 20
  del machine.ran[:]
  run(images[1:2], 7.1, 0.95)
  assert len(machine.ran) == 3
  # For four images, batches of 1, 2 and 4; then three have nothing new.
  assert run(images, 28.1, 0.95).in_time
  del machine.ran[:]
  assert run(images[:3], 28.1, 0.95).in_time
  assert len(machine.ran) <= 6
  run.measure(images[:3])
  assert len(machine.ran) > 30


@pytest.mark.parametrize('value', [
    0, -1, -0.5, float('nan'), float('-inf'), None, '5', True, [5], 1j])
def test_bad_budgets_are_named(value):
  with pytest.raises(ValueError, match='^milliseconds=') as error:
    anytime.check_budget(value)
  assert repr(value) in str(error.value)


def test_good_budgets():
  for value in (1, 0.1, np.float32(2), np.int64(3), float('inf')):
    assert anytime.check_budget(value) == float(value)
  assert isinstance(anytime.check_budget(np.int64(3)), float)


@pytest.mark.parametrize('value', [0, 1, 1.5, float('nan'), '0.9'])
def test_bad_quantiles_are_named(value):
  with pytest.raises(ValueError, match='^quantile='):
    anytime.check_quantile(value)


def test_what_cannot_have_a_budget(machine, images):
  with pytest.raises(ValueError, match='single exit'):
    anytime.Anytime(_cascade(machine, 1))(images, 5., 0.95)
  with pytest.raises(ValueError, match='max_batch_size=4'):
    anytime.Anytime(_cascade(machine))(np.tile(images, (2, 1, 1, 1)), 5., 0.95)
  assert not machine.ran


def test_of_a_classifier():
  config = tiny.get_config()
  config.phases = ('exits',)
  config.model.exits = ((1, 'mlp'),)
  system = system_lib.create(config, tiny.dataset())
  clf = adavit_jax.CascadeClassifier(
      system, state_lib.init_state(system, 0), 'exits', max_batch_size=1)
  images = np.zeros((1, 8, 8, 1), np.uint8)
  for budget, e in ((1e-6, 0), (1e9, 1)):
    got = clf.within(images, milliseconds=budget)
    assert got.exit == e and got.in_time == bool(e)
    assert 0 < got.milliseconds < 1e9
    clf.thresholds = confidence.NEVER if e else confidence.ALWAYS
    np.testing.assert_array_equal(got.logits, clf(images).logits)
    clf.thresholds = confidence.NEVER
  clf.thresholds = confidence.ALWAYS
  assert clf.within(images, 1e9).exit == 0
  with pytest.raises(ValueError, match='^milliseconds=0'):
    clf.within(images, 0)
  with pytest.raises(ValueError, match='uint8'):
    clf.within(np.float32(images), 5)
  assert 'milliseconds=' in repr(got)


def test_a_classifier_without_exits_has_none():
  clf = object.__new__(classifier.Classifier)
  assert not hasattr(clf, 'within')
  with pytest.raises(AttributeError, match='within .*single exit'):
    clf.within(np.zeros((1, 8, 8, 1), np.uint8), 5)
