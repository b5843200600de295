"""Images per second of CPU time: reading, random crops and resizing to 224 px.

  python benchmarks/input.py --images=DIR --torch_python=VENV/bin/python

DIR holds photographs, such as those of Imagenette. They are enlarged to
500 x 375 pixels, get noise, so that they are no easier to decode than a
camera's, and are saved as JPEGs of quality 90. Every rival reads the same
files, crops them by RandomResizedCrop and makes batches:

  packed threads    this library, a packed set
  packed workers    the same in worker processes
  folder threads    this library, a folder
  pillow threads    Pillow in a thread pool
  grain threads     grain with Pillow in its transformation
  grain workers     the same in worker processes
  torch workers     torch's DataLoader with torchvision's transforms, run by
                    --torch_python, with torch and torchvision; left out
                    without it

Each runs in a process of its own, in turns. CPU time is that of the process and
its children between two batches, after a few batches for the start, so that
other work on the machine takes little part. The rate of a busy machine is lower
for all of them. Run it on as many cores as there are workers (taskset).
"""

import collections
from concurrent import futures
import contextlib
import io
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import cpu_time
import numpy as np
from PIL import Image

_IMAGES = flags.DEFINE_string('images', '', 'Directory of photographs.')
_NUM = flags.DEFINE_integer('num', 400, 'How many of them are used.')
_NOISE = flags.DEFINE_float('noise', 12., 'Standard deviation of the noise.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Images in a batch.')
_BATCHES = flags.DEFINE_integer('batches', 16, 'Batches that are timed.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Turns of every rival.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Threads, or processes.')
_REPEATS = flags.DEFINE_integer(
    'repeats', 1, 'Crops of each image, of this library alone.')
_TORCH = flags.DEFINE_string('torch_python', '', 'Python with torch.')
_RIVALS = flags.DEFINE_list('rivals', '', 'Some of them; empty for all.')
_ONE = flags.DEFINE_string('one', '', 'Runs this rival on --prepared.')
_PREPARED = flags.DEFINE_string('prepared', '', 'Directory of the images.')
_SIZE = 224


def main(argv):
  del argv
  if _ONE.value:
    return print(json.dumps(measure(_ONE.value, _PREPARED.value)))
  with tempfile.TemporaryDirectory() as directory:
    size = prepare(pathlib.Path(directory))
    print(f'{_NUM.value} JPEGs of {size / 1e3:.0f} kB; images per CPU second')
    names = _RIVALS.value or rivals()
    found = collections.defaultdict(list)
    for turn in range(_ROUNDS.value):
      for name in names[::-1] if turn % 2 else names:
        found[name].append(in_a_process(name, directory))
    reference = [row['rate'] for row in found.get('pillow threads', [])]
    for name, rows in found.items():
      rates = [row['rate'] for row in rows]
      ratio = np.median(rates) / np.median(reference) if reference else math.nan
      print(f'{name:15} {np.median(rates):6.0f} ({min(rates):.0f} to '
            f'{max(rates):.0f})  {ratio:5.2f} of pillow  '
            f"{max(row['memory'] for row in rows):5.0f} MB in all")


def rivals():
  """Returns the names of all that can run."""
  names = ['packed threads', 'packed workers', 'folder threads',
           'pillow threads', 'grain threads', 'grain workers']
  return names + ['torch workers'] * bool(_TORCH.value)


def prepare(directory):
  """Writes a folder and a packed set; returns the mean size of a file."""
  from adavit_jax.data import packing
  rng, size = np.random.default_rng(0), 0
  paths = sorted(
      path for path in pathlib.Path(_IMAGES.value).rglob('*')
      if path.suffix.lower() in ('.jpeg', '.jpg'))
  paths = paths[::max(1, len(paths) // _NUM.value)][:_NUM.value]
  if len(paths) < _NUM.value:
    raise app.UsageError(
        f'--images={_IMAGES.value} has only {len(paths)} JPEGs; set --num')
  for split in ('train', 'test'):
    for label in 'ab':
      (directory / 'folder' / split / label).mkdir(parents=True)
  for i, path in enumerate(paths):
    image = Image.open(path).convert('RGB').resize(
        (500, 500), Image.Resampling.BICUBIC).crop((0, 62, 500, 437))
    noise = (rng.normal(0, _NOISE.value, (375, 500, 1))
             + rng.normal(0, _NOISE.value / 3, (375, 500, 3)))
    image = Image.fromarray(
        np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=90)
    size += len(file.getvalue())
    for split in ('train', 'test') if i < 4 else ('train',):
      target = directory / 'folder' / split / 'ab'[i % 2] / f'{i}.jpg'
      target.write_bytes(file.getvalue())
  packing.pack(packing.source(str(directory / 'folder')), directory / 'packed')
  return size / len(paths)


def in_a_process(name, directory):
  """Runs `measure` in another process."""
  kind = name.partition(' ')[0]
  script = 'input_torch.py' if kind == 'torch' else 'input.py'
  python = _TORCH.value if kind == 'torch' else sys.executable
  options = [f'--{f.name}={f.value}' for f in (
      _BATCH, _BATCHES, _WORKERS, _REPEATS)]
  output = subprocess.run(
      [python, pathlib.Path(__file__).with_name(script), f'--one={name}',
       f'--prepared={directory}', *options],
      check=True, capture_output=True, text=True).stdout
  return json.loads(output.splitlines()[-1])


def measure(name, directory):
  """Returns images per CPU second and the memory of all processes in MB."""
  kind, _, how = name.partition(' ')
  workers = 0 if how == 'threads' else _WORKERS.value
  make = dict(packed=ours, folder=ours, pillow=pillow, grain=grain)[kind]
  batches = make(kind, pathlib.Path(directory), workers)
  with contextlib.closing(batches):
    return cpu_time.timed(batches, _BATCH.value, _BATCHES.value)


def ours(kind, directory, workers):
  """This library, as the training loop calls it."""
  from adavit_jax import data
  from adavit_jax.data import encoded
  from adavit_jax.data import encoded_split
  encoded_split.MAX_BYTES = 0  # as a set too large for memory
  encoded.os.cpu_count = lambda: _WORKERS.value
  config = data.default_config()
  config.update(dict(
      name=kind, data_dir=str(directory / kind), image_size=_SIZE,
      load_size=256, holdout=0., resized_crop=0.08))
  split = data.load(config).train
  return data.train_batches(
      split, seed=0, start_step=0, stop_step=10**6, batch_size=_BATCH.value,
      crop=data.crop_on_reading(split, config), workers=workers,
      repeats=_REPEATS.value)


def by_pillow(path):
  """Returns a random resized crop, the way that it is mostly written."""
  image = Image.open(path).convert('RGB')
  width, height = image.size
  rng = np.random.default_rng(int.from_bytes(os.urandom(8), 'little'))
  for _ in range(10):
    area = rng.uniform(0.08, 1) * width * height
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if w <= width and h <= height:
      break
  else:
    w = h = min(width, height)
  left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
  image = image.crop((left, top, left + w, top + h)).resize(
      (_SIZE, _SIZE), Image.Resampling.BICUBIC)
  return np.asarray(image)


def paths_of(directory):
  return sorted(map(str, (directory / 'folder' / 'train').rglob('*.jpg')))


def pillow(kind, directory, workers):
  """Pillow in threads."""
  del kind, workers
  paths = itertools.cycle(paths_of(directory))
  with futures.ThreadPoolExecutor(_WORKERS.value) as pool:
    while True:
      yield np.stack(list(pool.map(
          by_pillow, itertools.islice(paths, _BATCH.value))))


def grain(kind, directory, workers):
  """grain, as its documentation reads image files."""
  del kind
  import grain as grain_lib
  dataset = grain_lib.MapDataset.source(paths_of(directory)).seed(0).shuffle(
      ).repeat().map(by_pillow).batch(_BATCH.value)
  dataset = dataset.to_iter_dataset(grain_lib.ReadOptions(
      num_threads=1 if workers else _WORKERS.value, prefetch_buffer_size=2))
  if workers:
    dataset = dataset.mp_prefetch(
        grain_lib.MultiprocessingOptions(num_workers=workers))
  yield from dataset


if __name__ == '__main__':
  app.run(main)
