"""The runner against running all stages and choosing afterwards."""

import concurrent.futures
import os
import threading
import time

from adavit_jax import models
from adavit_jax.exits import confidence as confidence_lib
from adavit_jax.runtime import cascade as cascade_lib
from adavit_jax.runtime import image_buffer
from adavit_jax.runtime import stage_program
from adavit_jax.runtime import stages as stages_lib
from adavit_jax.train import mesh as mesh_lib
from adavit_jax.train import sharded
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

N = 120
MACS = (10, 25, 40)
SIZES = (1, 4, 16)


def _agreement(logits, memory):
  """A rule with memory: the probability that two exits in a row agree."""
  p = jax.nn.softmax(logits)
  before = jnp.zeros_like(p) if memory is None else memory
  return (p * before).sum(-1), p


@pytest.fixture(scope='module')
def model():
  return models.create(
      'ravit_cifar_patch4_32', image_size=16, channels=1, width=8, num_heads=2,
      mlp_ratio=2., num_classes=5, layers=(1, 1, 1), factors=(2, 1, 1))


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model, scale=0.6)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.normal(size=(N, 16, 16, 1)).astype(np.float32)


@pytest.fixture(scope='module')
def logits(model, params, images):
  run = jax.jit(lambda p, x: stages_lib.exit_logits(model, p, x))
  return np.asarray(run(params, images))


def _make(model, params, rule=confidence_lib.RULES['entropy'], sizes=SIZES):
  return cascade_lib.Cascade(
      stages_lib.stages(model), params, rule, 0., MACS, sizes=sizes)


@pytest.fixture(scope='module')
def cascade(model, params, images):
  # As a run is restored.
  params = sharded.put(params, mesh_lib.make_mesh(1))
  cascade = _make(model, params)
  cascade.warm_up(images)
  return cascade


@pytest.fixture(scope='module')
def _seen():
  seen = []
  def listen(event, *args, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      seen.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  return seen


@pytest.fixture
def compilations(_seen, cascade, confidence):
  """A list that grows by one with every program that is compiled."""
  del _seen[:]
  return _seen


@pytest.fixture(scope='module')
def confidence(logits):
  rule = confidence_lib.RULES['entropy']
  return np.asarray(confidence_lib.confidences(rule, jnp.asarray(logits)))


def _thresholds(confidence, rng):
  """Random ones that no image is near enough for rounding to decide."""
  thresholds = []
  for row in confidence[:-1]:
    middle = np.convolve(np.sort(row), [.5, .5], 'valid')
    wide = middle[np.diff(np.sort(row)) > 1e-4]
    thresholds.append(rng.choice([
        *wide, confidence_lib.NEVER, confidence_lib.ALWAYS]))
  return np.array(thresholds)


def _expected(logits, confidence, thresholds, rows):
  chosen = confidence_lib.choose(confidence[:, rows], thresholds)
  y, macs = logits[chosen, rows], np.cumsum(MACS)[chosen]
  return cascade_lib.CascadePrediction(y, y.argmax(-1), chosen, macs)


def _same(got, want):
  np.testing.assert_allclose(got.logits, want.logits, rtol=1e-4, atol=1e-4)
  for name in ('labels', 'exit', 'macs'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_the_data_use_every_exit(confidence):
  chosen = confidence_lib.choose(confidence, np.median(confidence[:-1], 1))
  assert np.bincount(chosen).min() > 10


def test_batches_are_the_choice_afterwards(
    cascade, images, logits, confidence, compilations):
  rng = np.random.default_rng(1)
  for n in range(1, 41):
    cascade.thresholds = thresholds = _thresholds(confidence, rng)
    rows = rng.choice(N, n, replace=False)
    _same(cascade(images[rows]),
          _expected(logits, confidence, thresholds, rows))
  assert not compilations


def test_streams_are_the_choice_afterwards(
    cascade, images, logits, confidence, compilations):
  rng = np.random.default_rng(2)
  for i, n in enumerate((*range(1, 41), N, N, N)):
    cascade.thresholds = thresholds = _thresholds(confidence, rng)
    rows = rng.choice(N, n, replace=False)
    window = (None, 16, 20)[i % 3]
    got = list(cascade.stream((images[i] for i in rows), window=window))
    assert len(got) == n and got[0].logits.shape == (5,)
    _same(cascade_lib.CascadePrediction(*map(np.stack, zip(*got))),
          _expected(logits, confidence, thresholds, rows))
  assert not compilations


def test_single_images_are_the_choice_afterwards(
    cascade, images, logits, confidence, compilations):
  rng = np.random.default_rng(3)
  rows, used = np.arange(N), set()
  for _ in range(8):
    cascade.thresholds = thresholds = _thresholds(confidence, rng)
    want = _expected(logits, confidence, thresholds, rows)
    got = [cascade(images[i:i + 1]) for i in rows]
    _same(cascade_lib.CascadePrediction(*map(np.concatenate, zip(*got))), want)
    used.update(want.exit)
  assert used == {0, 1, 2} and not compilations


def test_a_rule_with_memory(model, params, images, logits):
  cascade = _make(model, params, _agreement, sizes=(1, 16))
  confidence = np.asarray(
      confidence_lib.confidences(_agreement, jnp.asarray(logits)))
  cascade.thresholds = thresholds = [.5, np.median(confidence[1])]
  want = _expected(logits, confidence, thresholds, np.arange(16))
  assert set(want.exit) == {1, 2}
  _same(cascade(images[:16]), want)
  _same(cascade(images[:1]), _expected(logits, confidence, thresholds, [0]))


def test_a_compilation_is_noticed(compilations):
  jax.jit(lambda x: x + 1)(np.ones(3))
  assert compilations


def test_thresholds_change_while_a_stream_runs(cascade, images):
  cascade.thresholds = confidence_lib.ALWAYS
  exits = []
  for i, prediction in enumerate(cascade.stream(images[:64])):
    exits.append(int(prediction.exit))
    if i == 31:
      cascade.thresholds = confidence_lib.NEVER
  assert exits == 32 * [0] + 32 * [2]


def _recorded(cascade, monkeypatch):
  runs = []
  run = image_buffer.ImageBuffer.run
  def record(self, stage, rows, sizes):
    runs.append((stage, len(rows)))
    return run(self, stage, rows, sizes)
  monkeypatch.setattr(image_buffer.ImageBuffer, 'run', record)
  return runs


def test_late_stages_of_a_stream_run_full(
    cascade, images, confidence, monkeypatch):
  cascade.thresholds = np.median(confidence[:-1], 1) + 1e-5
  runs = _recorded(cascade, monkeypatch)
  list(cascade.stream(images))
  for stage in range(3):
    counts = [n for k, n in runs if k == stage]
    assert counts[:-1] == [16] * (len(counts) - 1), 'only the last is smaller'
  del runs[:]
  cascade(images[:16])
  assert [k for k, _ in runs] == [0, 1, 2] and runs[1][1] < 16


@pytest.mark.parametrize('window', [48, 50])
def test_streams_read_no_further_than_their_window(
    cascade, images, confidence, window):
  """The first image waits at the second stage, where no other comes."""
  hard, easy = confidence[0].argmin(), confidence[0].argmax()
  read = []
  def source():
    for i in range(N):
      read.append(i)
      yield images[easy if i else hard]
  middle = (confidence[0, hard] + confidence[0, easy]) / 2
  cascade.thresholds = [middle, confidence_lib.NEVER]
  for count, prediction in enumerate(cascade.stream(source(), window=window)):
    assert len(read) - count <= window
    if not count:
      assert prediction.exit == 2 and len(read) == 48
  assert count == N - 1


def test_two_streams_and_a_batch_do_not_meet(
    cascade, images, logits, confidence):
  cascade.thresholds = thresholds = np.median(confidence[:-1], 1) + 1e-5
  rows = np.arange(40)
  want = _expected(logits, confidence, thresholds, rows)
  pairs = zip(cascade.stream(images[:40]), cascade.stream(images[39::-1]))
  for i, (a, b) in enumerate(pairs):
    assert a.exit == want.exit[i] and b.exit == want.exit[39 - i]
    if i == 20:
      _same(cascade(images[:40]), want)


def _together(function, args):
  """Calls the function with each argument in a thread of its own, at once."""
  barrier = threading.Barrier(len(args))
  def run(arg):
    barrier.wait()
    return function(arg)
  with concurrent.futures.ThreadPoolExecutor(len(args)) as pool:
    return list(pool.map(run, args))


def test_threads_share_a_cascade(
    cascade, images, logits, confidence, monkeypatch):
  cascade.thresholds = thresholds = np.median(confidence[:-1], 1) + 1e-5
  halves = np.split(np.arange(80), 2)
  run = image_buffer.ImageBuffer.run
  def slow(self, *args):  # so that another thread gets its turn in between
    time.sleep(.01)
    return run(self, *args)
  monkeypatch.setattr(image_buffer.ImageBuffer, 'run', slow)
  found = _together(lambda rows: cascade(images[rows]), halves)
  for got, rows in zip(found, halves):
    _same(got, _expected(logits, confidence, thresholds, rows))


def test_threads_compile_a_stage_at_once():
  def run(params, images, state):
    time.sleep(.1)  # while it is traced, so that both of them do
    return images * params['b']
  program = stage_program.StageProgram(run, dict(a=jnp.ones(3), b=jnp.ones(1)))
  for got in _together(lambda x: program(x, None), [np.ones(1)] * 2):
    np.testing.assert_array_equal(got, 1)


def test_parameters_that_are_set_while_a_stage_is_traced_are_used():
  def run(params, images, state):
    program.set_params(dict(a=np.full(1, 5.)))
    return images * params['a']
  program = stage_program.StageProgram(run, dict(a=np.ones(1)))
  for _ in range(2):
    np.testing.assert_array_equal(program(np.ones(1), None), 5)


def test_an_interrupted_call_leaves_nothing_behind(
    cascade, images, logits, confidence, monkeypatch):
  cascade.thresholds = confidence_lib.NEVER
  rows = np.arange(16)
  want = _expected(logits, confidence, cascade.thresholds, rows)
  cascade(images[rows])
  put = image_buffer._put
  def interrupted(*args):
    put(*args)
    raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr(image_buffer, '_put', interrupted)
    with pytest.raises(KeyboardInterrupt):
      cascade(images[rows])
  _same(cascade(images[rows]), want)


@pytest.mark.filterwarnings('error:.*float64')
@pytest.mark.parametrize('kind', [jnp.asarray, np.float64])
def test_other_arrays_are_taken_too(cascade, images, kind):
  cascade.thresholds = confidence_lib.NEVER
  want = cascade(images[:7])
  _same(cascade(kind(images[:7])), want)
  got = list(cascade.stream(kind(images[:7])))
  _same(cascade_lib.CascadePrediction(*map(np.stack, zip(*got))), want)


def test_what_was_read_is_answered_before_an_error_of_the_source(
    cascade, images):
  cascade.thresholds = confidence_lib.NEVER
  want = cascade(images[:7])
  def source():
    yield from images[:7]
    raise OSError('the camera is gone')
  stream, got = cascade.stream(source()), []
  with pytest.raises(OSError, match='camera'):
    got.extend(stream)  # takes what comes before the error
  _same(cascade_lib.CascadePrediction(*map(np.stack, zip(*got))), want)


def test_a_fork_is_refused(cascade, images, monkeypatch):
  pid, before = os.getpid(), cascade.stream(images)
  monkeypatch.setattr(os, 'getpid', lambda: pid + 1)
  for call in (lambda: cascade(images[:1]), lambda: cascade(images[:2]),
               lambda: cascade.stream(images), lambda: next(before),
               lambda: cascade.warm_up(images)):
    with pytest.raises(RuntimeError, match=f'{pid}.*spawn'):
      call()


def test_an_empty_stream_ends(cascade):
  assert not list(cascade.stream([]))


def test_plans_take_the_least_time():
  # A call costs nothing.
  free = image_buffer.fastest_batches((1, 2, 4, 8), 1e18)
  assert free[0] == () and free[7] == (4, 2, 1) and free[8] == (8,)
  # A call costs more than any row.
  dear = image_buffer.fastest_batches((1, 2, 4, 8), 1.)
  assert [dear[m] for m in (1, 2, 3, 5, 8)] == [(1,), (2,), (4,), (8,), (8,)]
  # One call costs two rows: 5 as 4 + 1 take 9, as 8 they take 10.
  some = image_buffer.fastest_batches((1, 2, 4, 8), 5e6, backend='cpu')
  assert some[5] == (4, 1) and some[6] == (8,) and some[3] == (4,)
  assert all(sum(plan) >= m for m, plan in enumerate(some))


@pytest.mark.parametrize('kwargs, field', [
    (dict(sizes=(2, 4)), r'^sizes=\[2, 4\]'),
    (dict(stage_macs=(1, 2)), r'^stage_macs=\(1, 2\).* 3 stages'),
    (dict(thresholds=[0.]), '^thresholds=.* 3 exits')])
def test_wrong_arguments(model, params, kwargs, field):
  with pytest.raises(ValueError, match=field):
    cascade_lib.Cascade(
        stages_lib.stages(model), params, confidence_lib.RULES['entropy'],
        **{**dict(thresholds=0., stage_macs=MACS), **kwargs})


def test_wrong_images(cascade, images):
  takes = r'^images.*\[B, 16, 16, 1\]'
  for n in (1, 3):
    with pytest.raises(ValueError, match=takes):
      cascade(np.zeros((n, 8, 8, 1), np.float32))
  with pytest.raises(ValueError, match=takes):
    next(cascade.stream(np.zeros((3, 8, 8, 1), np.float32)))
  cascade(images[:3])  # leaves slots of floats
  with pytest.raises(ValueError, match='^images.*uint8'):
    cascade(np.zeros(images[:3].shape, np.uint8))
  with pytest.raises(ValueError, match=r'^image 2 .*\(8, 8, 1\)'):
    list(cascade.stream([*images[:2], images[2, :8, :8]]))
  with pytest.raises(ValueError, match='^image 2 .*float64.*float32'):
    list(cascade.stream([*images[:2], images[2].astype(np.float64)]))
  for none in (images[:0], images[0]):
    with pytest.raises(ValueError, match=r'^images.*image\[None\]'):
      cascade(none)
  with pytest.raises(ValueError, match='^window=15'):
    cascade.stream(images, window=15)


def test_a_stage_is_given_what_it_reads(cascade, params, images):
  cascade(images[:4])
  for i, program in enumerate(cascade.programs):
    own = [x for name, group in params['backbone'].items()
           for x in jax.tree.leaves(group)
           if name.endswith(f'_{i}') or (name == 'cls' and i == 0)]
    assert len(own) < len(jax.tree.leaves(params)) / 2
    assert len(program._leaves) == len(own)
