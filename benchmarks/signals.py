"""Kills and stops a training at random moments, and compares how it ends:

  python benchmarks/signals.py --output=runs/signals --signals=40
  python benchmarks/signals.py --output=runs/signals2 --processes=2

Half of the signals are SIGKILL, half SIGTERM. A training that was interrupted
is resumed by the same command; one that ends is begun again elsewhere, until
all signals are sent. With several processes, two trainings are made, of a
policy and of exits; in every phase, each process is killed once, and one gets
SIGTERM. Prints
where the training was and how long it took to stop, and how many arrays of the
last checkpoint of each training differ from those of one that was not
interrupted, by their checksums. It takes 10 to 20 minutes on 2 CPU cores, or 40
with two processes; the signals are the same for a seed, their moments in the
training are not.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags

_OUTPUT = flags.DEFINE_string('output', None, 'A new directory for the runs.',
                              required=True)
_SIGNALS = flags.DEFINE_integer('signals', 40, 'Number of signals to a '
                                'training of one process.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the signals.')
_WITHIN = flags.DEFINE_float('within', 40., 'A signal to a training of one '
                             'process comes within so many seconds of the '
                             'start.')
_PROCESSES = flags.DEFINE_integer('processes', 1, 'Processes of a training, '
                                  'each with one CPU device.')
_ROOT = pathlib.Path(__file__).parents[1]
_SIGNUMS = (signal.SIGKILL, signal.SIGTERM)
_STEPS = dict(dense=300, warm_start=100, policy=100, joint=100)
# Of several processes, which share the CPU.
_TRAININGS = {
    'digits_policy': ('dense', 'warm_start', 'policy', 'joint'),
    'digits_exits': ('exits', 'classifier_wise')}
_FEW_STEPS, _FEW_IMAGES = 40, 16
_PHASES = [phase for phases in _TRAININGS.values() for phase in phases]
# What the log shows last, and where the training is then.
_PLACES = ('mask search', 'masks, train', 'masks, holdout', 'held out')


class _Signal(NamedTuple):
  """A signal to one process, some seconds after the start or in a phase."""
  signum: int
  process: int
  phase: str | None
  seconds: float


class _Job:
  """The processes of a training."""

  def __init__(self, config, workdir, name):
    """Starts or resumes it; their output goes to files of this name."""
    self.logs = [pathlib.Path(_OUTPUT.value, f'{name}_process{i}.txt')
                 for i in range(_PROCESSES.value)]
    command = [sys.executable, 'train.py', f'--config=configs/{config}.py',
               f'--workdir={workdir}']
    if _PROCESSES.value == 1:
      command += ['--config.checkpoint_every=25', '--config.eval_every=50',
                  '--config.log_every=5']
      command += [f'--config.{phase}.steps={num}'
                  for phase, num in _STEPS.items()]
    else:
      command += ['--distributed', '--config.checkpoint_every=10',
                  '--config.eval_every=20', '--config.log_every=2',
                  '--config.num_search=100', '--config.num_value=300',
                  f'--config.phases={_TRAININGS[config]}']
      for phase in _TRAININGS[config]:
        command += [f'--config.{phase}.steps={_FEW_STEPS}',
                    f'--config.{phase}.batch_size={_FEW_IMAGES}']
    port = _free_port()
    self.processes = [
        subprocess.Popen(command, cwd=_ROOT, stdout=open(log, 'w'),
                         stderr=subprocess.STDOUT, env=_environment(i, port))
        for i, log in enumerate(self.logs)]

  def wait(self, seconds):
    """Waits for the end of all processes; returns whether it came."""
    until = time.monotonic() + seconds
    while self.running() and time.monotonic() < until:
      time.sleep(0.05)
    return not self.running()

  def running(self):
    return any(p.poll() is None for p in self.processes)

  def statuses(self):
    return [p.returncode for p in self.processes]

  def place(self):
    """Names the part of the training that wrote the end of a log."""
    text = self.logs[0].read_text(errors='replace')
    at = {place: text.rfind(place) for place in _PLACES}
    for match in re.finditer(rf'^({"|".join(_PHASES)}) \d+/', text, re.M):
      at[match[1]] = match.start()
    place = max(at, key=at.get)
    return place if at[place] >= 0 else 'start'

  def send(self, due):
    """Sends a `_Signal` when it is due.

    Returns:
      (place, seconds until all ended, whether all others told which process
      died); None if the training ended before.
    """
    while due.phase and self.running() and self.place() != due.phase:
      time.sleep(0.05)
    if self.wait(due.seconds):
      return None
    place, before = self.place(), time.monotonic()
    self.processes[due.process].send_signal(due.signum)
    if not self.wait(300):
      raise SystemExit(f'not all ended, see {self.logs}')
    seconds = time.monotonic() - before
    while not (told := self._told(due.process)) and (
        time.monotonic() - before < 30 and due.signum == signal.SIGKILL):
      time.sleep(0.05)
    return place, seconds, told

  def _told(self, process):
    """Whether all other processes have said that this one died."""
    return all(f'process {process} of {_PROCESSES.value} ' in log.read_text()
               for i, log in enumerate(self.logs) if i != process)


def _environment(index, port):
  """Variables of a process; what mpirun sets makes several ones a job."""
  env = {**os.environ, 'JAX_COMPILATION_CACHE_DIR':
         os.path.abspath(f'{_OUTPUT.value}/cache'),
         'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  if _PROCESSES.value > 1:
    env.update(JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}',
               OMPI_MCA_orte_hnp_uri='0.0;tcp://127.0.0.1:1',
               OMPI_COMM_WORLD_SIZE=str(_PROCESSES.value),
               OMPI_COMM_WORLD_RANK=str(index), OMPI_COMM_WORLD_LOCAL_RANK='0')
  return env


def _free_port():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


def _signals(config, rng):
  """Returns the `_Signal`s of a training."""
  if _PROCESSES.value == 1:
    signums = [*_SIGNUMS] * (_SIGNALS.value // 2)
    rng.shuffle(signums)
    return [_Signal(signum, 0, None, rng.uniform(0, _WITHIN.value))
            for signum in signums]
  due = []
  for phase in _TRAININGS[config]:
    pairs = [(signal.SIGKILL, i) for i in range(_PROCESSES.value)]
    pairs.append((signal.SIGTERM, rng.randrange(_PROCESSES.value)))
    rng.shuffle(pairs)
    due += [_Signal(*pair, phase, rng.uniform(0, 2)) for pair in pairs]
  return due


def _interrupt(config, rng, rows):
  """Sends all signals to trainings; returns their directories."""
  output = pathlib.Path(_OUTPUT.value)
  runs, waiting = [output / config], _signals(config, rng)
  while waiting:
    job = _Job(config, runs[-1], f'{config}{len(waiting)}')
    sent = job.send(waiting[0])
    if sent is None:
      if any(job.statuses()):
        raise SystemExit(f'the training failed, see {job.logs}')
      runs.append(output / f'{config}_{len(runs)}')
      continue
    due = waiting.pop(0)
    rows.append((due, *sent))
    print(f'{signal.Signals(due.signum).name} to {due.process} in {sent[0]}: '
          f'{sent[1]:.1f} s, statuses {job.statuses()}, told {sent[2]}',
          flush=True)
  _finish(config, runs[-1])
  return runs


def _finish(config, workdir):
  job = _Job(config, workdir, f'{workdir.name}_last')
  if not job.wait(3600) or any(job.statuses()):
    raise SystemExit(f'the training failed, see {job.logs}')


def _checksums(workdir):
  """Checksums of the arrays of the last checkpoint, by path."""
  steps = (workdir / 'checkpoints' / 'phases').iterdir()
  last = max(steps, key=lambda path: int(path.name))
  return json.loads((last / 'about' / 'metadata').read_text())['arrays']


def _print_table(rows):
  seconds = collections.defaultdict(list)
  for due, place, took, told in rows:
    name = signal.Signals(due.signum).name
    if _PROCESSES.value == 1:
      seconds[name, re.sub(r'.*, ', 'table, ', place)].append((took, True))
    else:
      seconds[name, f'process {due.process}'].append(
          (took, told or due.signum != signal.SIGKILL))
  print('\n| signal | in | number | longest, s | told |\n|---|---|---|---|---|')
  for (name, place), results in sorted(seconds.items()):
    took, told = zip(*results)
    print(f'| {name} | {place} | {len(took)} | {max(took):.1f} | {sum(told)} |')


def main(_):
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True)
  rng, rows = random.Random(_SEED.value), []
  configs = list(_TRAININGS)[:1 if _PROCESSES.value == 1 else None]
  runs = {config: _interrupt(config, rng, rows) for config in configs}
  _print_table(rows)
  for config, workdirs in runs.items():
    whole = output / f'{config}_whole'
    _finish(config, whole)
    wanted = _checksums(whole)
    for workdir in workdirs:
      found = _checksums(workdir)
      differ = sum(found.get(path) != crc for path, crc in wanted.items())
      print(f'{workdir}: {differ} of {len(wanted)} arrays differ')


if __name__ == '__main__':
  app.run(main)
