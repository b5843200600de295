"""Kills and stops a training at random moments, and compares how it ends:

  python benchmarks/signals.py --output=runs/signals --signals=40

Half of the signals are SIGKILL, half SIGTERM. A training that was interrupted
is resumed by the same command; one that ends is begun again elsewhere, until
all signals are sent. Prints where the training was and how long it took to
stop, and how many arrays of the last checkpoint of each training differ from
those of one that was not interrupted, by their checksums. It takes 10 to 20
minutes on 2 CPU cores; the signals are the same for a seed, their moments in
the training are not.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

from absl import app
from absl import flags

_OUTPUT = flags.DEFINE_string('output', None, 'A new directory for the runs.',
                              required=True)
_SIGNALS = flags.DEFINE_integer('signals', 40, 'Number of signals.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the signals.')
_WITHIN = flags.DEFINE_float('within', 40., 'A signal comes within so many '
                             'seconds of the start.')
_ROOT = pathlib.Path(__file__).parents[1]
_STEPS = dict(dense=300, warm_start=100, policy=100, joint=100)
# What the log shows last, and where the training is then.
_PLACES = ('mask search', 'masks, train', 'masks, holdout', 'held out',
           *_STEPS)


def _start(workdir, log):
  """Starts or resumes the training, with its output in the file `log`."""
  steps = [f'--config.{phase}.steps={num}' for phase, num in _STEPS.items()]
  return subprocess.Popen(
      [sys.executable, 'train.py', '--config=configs/digits_policy.py',
       f'--workdir={workdir}', '--config.checkpoint_every=25',
       '--config.eval_every=50', '--config.log_every=5', *steps],
      cwd=_ROOT, stdout=log, stderr=subprocess.STDOUT,
      env={**os.environ, 'JAX_COMPILATION_CACHE_DIR':
           os.path.abspath(f'{_OUTPUT.value}/cache'),
           'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})


def _place(text):
  """Names the part of the training that wrote the end of a log."""
  at = {place: text.rfind(place) for place in _PLACES}
  place = max(at, key=at.get)
  return place if at[place] >= 0 else 'start'


def _checksums(workdir):
  """Checksums of the arrays of the last checkpoint, by path."""
  steps = (workdir / 'checkpoints' / 'phases').iterdir()
  last = max(steps, key=lambda path: int(path.name))
  return json.loads((last / 'about' / 'metadata').read_text())['arrays']


def _send(process, log, signum):
  """Sends a signal; returns (place, seconds until the training ended)."""
  place, before = _place(log.read_text(errors='replace')), time.monotonic()
  process.send_signal(signum)
  process.wait(timeout=300)
  return place, time.monotonic() - before


def main(_):
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True)
  rng = random.Random(_SEED.value)
  signums = [signal.SIGKILL, signal.SIGTERM] * (_SIGNALS.value // 2)
  rng.shuffle(signums)
  rows, runs, number = [], [output / 'run0'], 0
  while number < len(signums):
    log = output / f'log{number}.txt'
    with open(log, 'w') as file:
      process = _start(runs[-1], file)
    try:
      process.wait(timeout=rng.uniform(0, _WITHIN.value))
    except subprocess.TimeoutExpired:
      place, seconds = _send(process, log, signums[number])
      rows.append((signums[number].name, place, seconds, process.returncode))
      print('{} in {}: {:.1f} s, status {}'.format(*rows[-1]), flush=True)
      number += 1
      continue
    if process.returncode:
      raise SystemExit(f'the training failed, see {log}')
    runs.append(output / f'run{len(runs)}')
  for workdir in (runs[-1], output / 'whole'):
    with open(output / 'last.txt', 'w') as file:
      if _start(workdir, file).wait():
        raise SystemExit(f'the training failed, see {output}/last.txt')
  _report(rows, runs, _checksums(output / 'whole'))


def _report(rows, runs, whole):
  seconds = collections.defaultdict(list)
  for name, place, took, _ in rows:
    seconds[name, re.sub(r'.*, ', 'table, ', place)].append(took)
  print('\n| signal | in | number | longest, s |\n|---|---|---|---|')
  for (name, place), took in sorted(seconds.items()):
    print(f'| {name} | {place} | {len(took)} | {max(took):.1f} |')
  for workdir in runs:
    found = _checksums(workdir)
    differ = sum(found.get(path) != crc for path, crc in whole.items())
    print(f'{workdir}: {differ} of {len(whole)} arrays differ')


if __name__ == '__main__':
  app.run(main)
