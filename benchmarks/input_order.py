"""A set of many files: start, memory, and the order of images after a kill.

  python benchmarks/input_order.py --num=100000

Makes --num small JPEGs (links to 50 of them) in 100 classes, and packs them.
For the folder and the packed set it prints the seconds and the memory to load
the set, and the memory after --steps batches of 256 crops of 224 px in threads.
Then it reads batches of the packed set in processes that print a digest of each
row: one that is killed by SIGKILL and goes on in a new process, and two that
take the part of two hosts. All must print the rows of a process without
workers.
"""

import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import numpy as np
from PIL import Image

_NUM = flags.DEFINE_integer('num', 100_000, 'Number of files.')
_STEPS = flags.DEFINE_integer('steps', 8, 'Batches of the measurement.')
_ONE = flags.DEFINE_string('one', '', "Of this process: 'memory' or 'rows'.")
_NAME = flags.DEFINE_string('name', '', "'folder' or 'packed'.")
_DIRECTORY = flags.DEFINE_string('directory', '', 'Of the sets.')
_START = flags.DEFINE_integer('start', 0, 'First step.')
_WORKERS = flags.DEFINE_integer('workers', 0, 'Worker processes.')
_HOST = flags.DEFINE_integer('host', 0, 'Index of the host.')
_HOSTS = flags.DEFINE_integer('hosts', 1, 'Number of hosts.')
_CLASSES, _DISTINCT, _ROWS, _SHOWN = 100, 50, 256, 6


def main(argv):
  del argv
  if _ONE.value == 'memory':
    return print(json.dumps(memory()))
  if _ONE.value == 'rows':
    return rows()
  with tempfile.TemporaryDirectory() as directory:
    make(pathlib.Path(directory))
    for name in ('folder', 'packed'):
      found = json.loads(run(directory, 'memory', name).communicate()[0])
      print(f'{name}: ' + ', '.join(f'{k} {v:.1f}' for k, v in found.items()))
    whole = lines(run(directory, 'rows'))
    print(f'{len(whole)} rows of {_SHOWN} steps, {len(set(whole))} of them '
          f'distinct')
    for workers in (1, 2, 4):
      process = run(directory, 'rows', workers=workers)
      first = [process.stdout.readline().strip() for _ in range(2 * _ROWS)]
      process.send_signal(signal.SIGKILL)
      process.wait()
      rest = lines(run(directory, 'rows', start=2, workers=4 // workers))
      print(f'{workers} workers, killed, then {4 // workers}:',
            'the same' if first + rest == whole else 'OTHER ROWS')
    parts = [lines(run(directory, 'rows', host=i, hosts=2, workers=i))
             for i in range(2)]
    half = _ROWS // 2
    joined = [row for i in range(0, len(parts[0]), half)
              for part in parts for row in part[i:i + half]]
    print('two hosts:', 'the same' if joined == whole else 'OTHER ROWS')


def make(directory):
  """Writes the folder, and packs it."""
  from adavit_jax.data import packing
  rng = np.random.default_rng(0)
  kept = []
  for i in range(_DISTINCT):
    path = directory / f'{i}.jpg'
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (80, 60), Image.Resampling.BICUBIC).save(path)
    kept.append(path)
  for split, num in (('train', _NUM.value), ('test', _CLASSES)):
    for label in range(_CLASSES):
      folder = directory / 'folder' / split / f'{label:03d}'
      folder.mkdir(parents=True)
      for i in range(label, num, _CLASSES):
        os.link(kept[i % _DISTINCT], folder / f'{i:07d}.jpg')
  start = time.monotonic()
  packing.pack(packing.source(str(directory / 'folder')), directory / 'packed')
  print(f'packed in {time.monotonic() - start:.0f} s')


def run(directory, one, name='packed', **options):
  """Starts this script again."""
  return subprocess.Popen(
      [sys.executable, __file__, f'--one={one}', f'--directory={directory}',
       f'--name={name}', f'--steps={_STEPS.value}',
       *(f'--{key}={value}' for key, value in options.items())],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def lines(process):
  return process.communicate()[0].split()


def load():
  from adavit_jax import data
  config = data.default_config()
  config.update(dict(
      name=_NAME.value, data_dir=f'{_DIRECTORY.value}/{_NAME.value}',
      image_size=224, load_size=256, holdout=0.01, resized_crop=0.08,
      cache_dir=f'{_DIRECTORY.value}/cache'))
  split = data.load(config).train
  return data, split, data.crop_on_reading(split, config)


def memory():
  """Returns seconds of CPU time and MB of memory."""
  import adavit_jax  # all of it, as in a training
  del adavit_jax
  now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
  before, start = now(), (time.process_time(), time.monotonic())
  data, split, crop = load()
  found = dict(
      images=len(split), before_mb=before, load_mb=now(),
      load_cpu_s=time.process_time() - start[0],
      load_s=time.monotonic() - start[1])
  for _ in data.train_batches(
      split, seed=0, start_step=0, stop_step=_STEPS.value, batch_size=_ROWS,
      crop=crop):
    pass
  return dict(found, train_mb=now())


def rows():
  """Prints a digest of every row of the batches."""
  data, split, crop = load()
  for batch in data.train_batches(
      split, seed=0, start_step=_START.value, stop_step=_SHOWN,
      batch_size=_ROWS, crop=crop, workers=_WORKERS.value,
      process_index=_HOST.value, process_count=_HOSTS.value):
    for image, label in zip(batch['image'], batch['label']):
      text = image.tobytes() + bytes([label])
      print(hashlib.sha256(text).hexdigest()[:16], flush=True)


if __name__ == '__main__':
  app.run(main)
