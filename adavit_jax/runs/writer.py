"""Metrics in JSON lines and TensorBoard, progress on the terminal."""

import collections
import importlib.util
import json
import math
import sys
import time

from etils import epath
import jax
import numpy as np

# Seconds between rewrites of the file in an object store, which cannot append.
_REWRITE_S = 60.


class MetricWriter:
  """Appends metrics to workdir/metrics.jsonl, one JSON object per line.

  Only process 0 writes; in a gs:// directory at most once a minute, at `sync`
  and at the end. If tensorboardX is installed, or clu together with TensorFlow
  and TensorBoard, events are also written to workdir/tensorboard.
  """

  def __init__(self, workdir, *, resume_step: int | None = None):
    """Opens the file.

    Args:
      workdir: directory of the run; created if it is missing.
      resume_step: the step that the run resumes from. Lines of later steps are
        dropped, because the run will write them again. None keeps all lines.
    """
    self._file, self._events = None, None
    if jax.process_index() != 0:
      return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    if path.exists():
      _drop_lines(path, resume_step)
    self._file = path.open('a') if _appends(path) else _Rewritten(path)
    self._events = _event_writer(workdir / 'tensorboard', resume_step)

  def write(self, step: int, metrics) -> None:
    """Writes one line {'step': step, ...}.

    Args:
      step: the training step.
      metrics: dict of floats and arrays on the host. Arrays become lists (in
        TensorBoard one scalar per element); NaN and infinity, which JSON lacks,
        become null.
    """
    if self._file is None:
      return
    arrays = {k: np.asarray(v) for k, v in metrics.items()}
    line = {'step': int(step), **{k: _jsonable(v) for k, v in arrays.items()}}
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    self._file.flush()
    if self._events is not None:
      self._events(int(step), dict(_scalars(arrays)))

  def sync(self) -> None:
    """Writes all lines so far to the file; call it before each checkpoint."""
    if isinstance(self._file, _Rewritten):
      self._file.rewrite()

  def close(self) -> None:
    """Closes the file. Closing it again is allowed, writing to it is not."""
    if self._file is not None:
      self._file.close()
      self._file = None
    if self._events is not None:
      self._events.close()
      self._events = None

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.close()


class _Rewritten:
  """A text file to append to in a store that only writes whole files."""

  def __init__(self, path):
    self._path = path
    self._text = path.read_text() if path.exists() else ''
    self._written = self._text
    self._at = time.monotonic()

  def write(self, text):
    self._text += text

  def flush(self):
    if time.monotonic() - self._at >= _REWRITE_S:
      self.rewrite()

  def close(self):
    self.rewrite()

  def rewrite(self):
    if self._text != self._written:
      self._path.write_text(self._text)
      self._written = self._text
    self._at = time.monotonic()


class Progress:
  """Shows the progress of a run on stderr of process 0.

  On a terminal the line is redrawn in place; otherwise a new line is printed
  at most every `every_s` seconds.
  """

  def __init__(self, total_steps: int, unit: str = 'images', label: str = '', *,
               every_s: float = 10., max_metrics: int = 4, window: int = 50,
               stream=None, clock=time.monotonic):
    """Starts the clock.

    Args:
      total_steps: the step at which the run (or phase) ends.
      unit: the unit of `num_images`.
      label: text at the start of the line, e.g. the phase's name.
      every_s: seconds between lines if stderr is not a terminal.
      max_metrics: maximum number of metrics in a line.
      window: number of calls over which speed is measured, so that compilation
        at the start soon drops out.
      stream: stream to print to; None for stderr.
      clock: function that returns seconds, for tests.
    """
    self._total, self._unit, self._label = total_steps, unit, label
    self._every_s, self._max_metrics = every_s, max_metrics
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._start = clock()
    self._marks = collections.deque(maxlen=max(2, window))
    self._printed_at = -math.inf
    self._width = 0

  def line(self, step: int, num_images: int, metrics) -> str:
    """Formats the line and records this call to measure the speed.

    Args:
      step: steps done.
      num_images: images seen so far; only differences matter.
      metrics: dict of floats; non-scalar entries are left out.

    Returns:
      'label step/total p% | n images/s | h:mm:ss elapsed, h:mm:ss left | ...';
      speed and time left are '-' until two calls have been made.
    """
    now = self._clock()
    self._marks.append((now, step, num_images))
    then, step0, images0 = self._marks[0]
    seconds, steps = now - then, step - step0
    speed = left = '-'
    if seconds > 0 and steps > 0:
      speed = f'{(num_images - images0) / seconds:,.0f}'
      left = _hms(max(0, self._total - step) * seconds / steps)
    share = 100 * step / self._total if self._total else 100.
    parts = [f'{self._label} {step}/{self._total} {share:.0f}%'.strip(),
             f'{speed} {self._unit}/s',
             f'{_hms(now - self._start)} elapsed, {left} left']
    shown = [f'{k} {float(v):.4g}' for k, v in metrics.items()
             if np.ndim(v) == 0]
    parts += [' '.join(shown[:self._max_metrics])] if shown else []
    return ' | '.join(parts)

  def update(self, step: int, num_images: int, metrics) -> None:
    """Prints `line(...)` if it is due."""
    text = self.line(step, num_images, metrics)
    if jax.process_index() != 0:
      return
    if self._stream.isatty():
      # Blanks overwrite the rest of a longer previous line.
      self._stream.write('\r' + text.ljust(self._width))
      self._width = len(text)
    elif (self._clock() - self._printed_at >= self._every_s
          or step >= self._total):
      self._stream.write(text + '\n')
      self._printed_at = self._clock()
    self._stream.flush()

  def close(self) -> None:
    """Ends the line on a terminal, so that later output starts a new one."""
    if self._width:
      self._stream.write('\n')
      self._stream.flush()
      self._width = 0


def _hms(seconds):
  seconds = int(round(seconds))
  return f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'


def _jsonable(x):
  if x.ndim:
    return [_jsonable(e) for e in x]
  # bfloat16 and other extended types are not JSON-serialisable.
  x = x.item() if x.dtype.kind in 'biuf' else float(x)
  return None if isinstance(x, float) and not math.isfinite(x) else x


def _scalars(arrays):
  for name, x in arrays.items():
    if x.ndim == 0:
      yield name, float(x)
    else:
      for i, e in enumerate(x.reshape(-1)):
        yield f'{name}/{i:02d}', float(e)


def _appends(path):
  return '://' not in str(path)


def _drop_lines(path, resume_step):
  kept = []
  for line in path.read_text().splitlines():
    try:
      step = json.loads(line)['step']
    except json.JSONDecodeError:
      # The line is incomplete: an earlier run was killed while writing it.
      continue
    if resume_step is None or step <= resume_step:
      kept.append(line + '\n')
  # Written and renamed, so that a kill during the write loses nothing.
  tmp = path.with_name(path.name + '.tmp')
  tmp.write_text(''.join(kept))
  tmp.replace(path)


class _TensorboardX:

  def __init__(self, logdir, resume_step):
    import tensorboardX
    purge = None if resume_step is None else resume_step + 1
    self._writer = tensorboardX.SummaryWriter(str(logdir), purge_step=purge)

  def __call__(self, step, scalars):
    for name, value in scalars.items():
      self._writer.add_scalar(name, value, step)

  def close(self):
    self._writer.close()


class _Clu:

  def __init__(self, logdir, resume_step):
    del resume_step
    from clu import metric_writers
    self._writer = metric_writers.SummaryWriter(str(logdir))

  def __call__(self, step, scalars):
    self._writer.write_scalars(step, scalars)

  def close(self):
    self._writer.close()


def _event_writer(logdir, resume_step):
  def has(*names):
    return all(importlib.util.find_spec(n) is not None for n in names)

  if has('tensorboardX'):
    return _TensorboardX(logdir, resume_step)
  # find_spec does not import TensorFlow, which takes many seconds.
  if has('clu', 'tensorflow', 'tensorboard'):
    return _Clu(logdir, resume_step)
  return None
