"""Progress on the terminal: steps, speed, time left and a few metrics."""

import collections
import math
import sys
import time

import jax
import numpy as np


class Progress:
  """Shows the progress of a run on stderr of process 0.

  On a terminal the line is redrawn in place; otherwise a new line is printed
  at most every `every_s` seconds.
  """

  def __init__(self, total_steps: int, unit: str = 'images', label: str = '', *,
               every_s: float = 10., quiet_s: float = 0., max_metrics: int = 4,
               window: int = 50,
               stream=None, clock=time.monotonic):
    """Starts the clock.

    Args:
      total_steps: the step at which the run (or phase) ends.
      unit: the unit of `num_images`.
      label: text at the start of the line, e.g. the phase's name.
      every_s: seconds between lines if stderr is not a terminal.
      quiet_s: seconds without a line at the start; work that takes less shows
        none.
      max_metrics: maximum number of metrics in a line.
      window: number of calls over which speed is measured, so that compilation
        at the start soon drops out.
      stream: stream to print to; None for stderr.
      clock: function that returns seconds, for tests.
    """
    self._total, self._unit, self._label = total_steps, unit, label
    self._every_s, self._quiet_s = every_s, quiet_s
    self._max_metrics = max_metrics
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
    if (jax.process_index() != 0
        or self._clock() - self._start < self._quiet_s):
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
