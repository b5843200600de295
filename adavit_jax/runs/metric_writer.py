"""Writes metrics as JSON lines and to TensorBoard."""

import importlib.util
import json
import math
import time

from absl import logging
from etils import epath
import jax
import numpy as np

from adavit_jax.runs import workdir as workdir_lib

# Seconds between rewrites of the file in an object store, which cannot append.
_REWRITE_S = 60.


class MetricWriter:
  """Appends metrics to workdir/metrics.jsonl, one JSON object per line.

  Only process 0 writes; in a gs:// directory at most once a minute, at `sync`
  and at the end. If tensorboardX is installed, or clu together with TensorFlow
  and TensorBoard, events are also written to workdir/tensorboard.
  """

  def __init__(self, workdir, *, resume_step: int | None = None,
               due: bool = False):
    """Opens the file.

    Args:
      workdir: directory of the run; created if it is missing.
      resume_step: the step that the run resumes from. Lines of later steps are
        dropped, because the run will write them again. None keeps all lines.
      due: whether the validation of that step will be written again, too.
    """
    self._file, self._events = None, None
    if jax.process_index() != 0:
      return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = path = workdir / 'metrics.jsonl'
    if path.exists():
      _drop_lines(path, resume_step, due)
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
    with workdir_lib.writing(self._path):
      self._file.write(json.dumps(line, allow_nan=False) + '\n')
      self._file.flush()
    if self._events is not None:
      self._events(int(step), dict(_scalars(arrays)))

  def sync(self) -> None:
    """Writes all lines so far to the file; call it before each checkpoint."""
    if isinstance(self._file, _Rewritten):
      with workdir_lib.writing(self._path):
        self._file.rewrite()

  def close(self) -> None:
    """Closes the file. Closing it again is allowed, writing to it is not."""
    if self._file is not None:
      file, self._file = self._file, None
      with workdir_lib.writing(self._path):
        file.close()  # writes what a full disk did not take
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


def _jsonable(x):
  if x.ndim:
    return [_jsonable(e) for e in x]
  # bfloat16 and other extended types are not JSON-serializable.
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


def _drop_lines(path, resume_step, due):
  kept, damaged = [], []
  text = path.read_bytes().decode(errors='replace')
  for number, line in enumerate(text.splitlines(), 1):
    try:
      values = json.loads(line)
      again = due and any(name.startswith('holdout/') for name in values)
      # Lines that count as those of a later step.
      step = values['step'] + again
      if resume_step is None or step <= resume_step:
        kept.append(line + '\n')
    except (ValueError, KeyError, TypeError):
      damaged.append(number)
  # A run that was killed may have left its last line incomplete.
  if damaged and (len(damaged) > 1 or text.endswith('\n')):
    aside = path.with_name(path.name + '.damaged')
    path.copy(aside, overwrite=True)
    logging.warning('%s has lines that cannot be read (the first is %d): they '
                    'are left out, and the file as it was is %s',
                    path, damaged[0], aside)
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
