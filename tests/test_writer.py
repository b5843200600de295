"""The metrics file, what a resume does to it, and the progress line."""

import io
import json

from adavit_jax.runs import metric_writer
from adavit_jax import progress as progress_lib
import jax.numpy as jnp
import numpy as np
import pytest


def _lines(path):
  return [json.loads(line) for line in
          (path / 'metrics.jsonl').read_text().splitlines()]


def test_writes_a_line_at_once(tmp_path):
  with metric_writer.MetricWriter(tmp_path / 'run') as w:
    w.write(1, {'loss': 0.5, 'keep': np.array([[1, 0], [0, 1]]),
                'n': np.int64(3), 'half': jnp.bfloat16(0.25)})
    assert _lines(tmp_path / 'run') == [
        {'step': 1, 'loss': 0.5, 'keep': [[1, 0], [0, 1]], 'n': 3,
         'half': 0.25}]
    w.write(2, {'loss': float('nan'), 'q': np.array([np.inf, 1.])})
    assert _lines(tmp_path / 'run')[1] == {
        'step': 2, 'loss': None, 'q': [None, 1.]}


@pytest.mark.parametrize('resume_step, kept', [
    (None, [10, 20, 30]), (20, [10, 20]), (25, [10, 20]), (0, [])])
def test_resume_drops_later_lines(tmp_path, resume_step, kept):
  with metric_writer.MetricWriter(tmp_path) as w:
    for step in (10, 20, 30):
      w.write(step, {'loss': step / 10})
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 15, "lo')  # A run killed while writing.
  with metric_writer.MetricWriter(tmp_path, resume_step=resume_step) as w:
    w.write(99, {'loss': 0.})
  assert [x['step'] for x in _lines(tmp_path)] == kept + [99]
  assert not (tmp_path / 'metrics.jsonl.tmp').exists()


def test_a_validation_that_is_due_again_is_not_written_twice(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as w:
    w.write(5, {'holdout/loss': 1.})
    w.write(10, {'dense/loss': 2.})
    w.write(10, {'holdout/loss': 3.})
  with metric_writer.MetricWriter(tmp_path, resume_step=10, due=True):
    pass
  assert _lines(tmp_path) == [{'step': 5, 'holdout/loss': 1.},
                              {'step': 10, 'dense/loss': 2.}]


@pytest.mark.parametrize('damage', [b'\xff\xfe\n', b'[1]\n', b'{}\n', b'x\n'])
def test_damaged_lines_are_set_aside(tmp_path, caplog, damage):
  path = tmp_path / 'metrics.jsonl'
  whole = b'{"step": 1}\n' + damage + b'{"step": 2}\n'
  path.write_bytes(whole)
  for _ in range(2):
    with metric_writer.MetricWriter(tmp_path, resume_step=2):
      pass
    assert [x['step'] for x in _lines(tmp_path)] == [1, 2]
    aside = tmp_path / 'metrics.jsonl.damaged'
    assert aside.read_bytes() == whole
    assert caplog.text.count(str(aside)) == 1


def test_where_nothing_can_be_appended_the_file_is_written_whole(
    tmp_path, monkeypatch):
  monkeypatch.setattr(metric_writer, '_appends', lambda path: False)
  for resume_step, steps in ((None, (1, 2, 3)), (2, (3, 4))):
    with metric_writer.MetricWriter(tmp_path, resume_step=resume_step) as w:
      before = (tmp_path / 'metrics.jsonl').exists()
      for step in steps:
        w.write(step, {'loss': step / 10})
      assert before == (tmp_path / 'metrics.jsonl').exists()
  assert [x['step'] for x in _lines(tmp_path)] == [1, 2, 3, 4]
  with metric_writer.MetricWriter(tmp_path) as w:
    w.write(4, {})
    w.sync()
    assert len(_lines(tmp_path)) == 5
  monkeypatch.setattr(metric_writer, '_REWRITE_S', 0.)
  with metric_writer.MetricWriter(tmp_path) as w:
    w.write(5, {'loss': 0.5})
    assert len(_lines(tmp_path)) == 6


def test_a_full_disk_names_the_file(tmp_path):
  with pytest.raises(ValueError, match='metrics.jsonl.*No space left'):
    with metric_writer.MetricWriter(tmp_path) as writer:
      writer._file = open('/dev/full', 'a')
      writer.write(1, {})


def test_events_get_scalars(tmp_path, monkeypatch):
  events, closed = [], []

  class Events:
    def __call__(self, step, scalars):
      events.append((step, scalars))

    def close(self):
      closed.append(True)

  monkeypatch.setattr(metric_writer, '_event_writer', lambda *args: Events())
  with metric_writer.MetricWriter(tmp_path) as w:
    w.write(4, {'loss': 1.5, 'keep': np.array([0., 1.])})
  assert events == [(4, {'loss': 1.5, 'keep/00': 0., 'keep/01': 1.})]
  assert closed == [True]


class _Stream(io.StringIO):
  def __init__(self, tty):
    super().__init__()
    self._tty = tty

  def isatty(self):
    return self._tty


class _Clock:
  now = 100.

  def __call__(self):
    return self.now


def _progress(tty=False, **kwargs):
  stream, clock = _Stream(tty), _Clock()
  return progress_lib.Progress(7300, label='dense', stream=stream, clock=clock,
                         **kwargs), stream, clock


def test_progress_line():
  progress, _, clock = _progress(max_metrics=2)
  assert progress.line(0, 0, {}) == (
      'dense 0/7300 0% | - images/s | 0:00:00 elapsed, - left')
  clock.now += 5
  # 100 steps in 5 s leave 7200 steps, 360 s.
  assert progress.line(100, 12800, {
      'loss': 1.23456, 'keep': np.ones(3), 'acc': np.float32(0.5), 'lr': 1,
  }) == ('dense 100/7300 1% | 2,560 images/s | 0:00:05 elapsed, '
         '0:06:00 left | loss 1.235 acc 0.5')


def test_progress_speed_forgets_the_start():
  progress, _, clock = _progress(window=2)
  progress.line(0, 0, {})
  clock.now += 3600  # Compilation.
  progress.line(1, 10, {})
  clock.now += 1
  line = progress.line(101, 1010, {})
  assert '1,000 images/s' in line
  assert '1:00:01 elapsed, 0:01:12 left' in line


@pytest.mark.parametrize('tty', [False, True])
def test_progress_of_short_work_is_not_shown(tty):
  progress, stream, clock = _progress(tty, quiet_s=10)
  clock.now += 9
  progress.update(7300, 0, {})
  progress.close()
  assert not stream.getvalue()
  clock.now += 1
  progress.update(7300, 0, {})
  assert 'dense 7300/7300' in stream.getvalue()


def test_progress_prints_rarely_to_a_file():
  progress, stream, clock = _progress(every_s=10)
  for step in range(5):
    clock.now += 4
    progress.update(step, step, {})
  progress.update(7300, 5, {})  # The last step is always shown.
  progress.close()
  steps = [x.split()[1] for x in stream.getvalue().splitlines()]
  assert steps == ['0/7300', '3/7300', '7300/7300']


def test_progress_redraws_on_a_terminal():
  progress, stream, _ = _progress(tty=True)
  progress.update(1, 1, {'loss': 0.123456})
  progress.update(2, 2, {})
  progress.close()
  first, second = stream.getvalue().split('\r')[1:]
  assert second.endswith('\n') and len(second) == len(first) + 1
