"""Classifies images with what export.py wrote:

  python examples/run_exported.py FILE IMAGE...
  python examples/run_exported.py DIRECTORY IMAGE...  # of --mode=stages

Needs jax, flatbuffers, NumPy and Pillow, and none of the model's code.
"""

import io
import json
import pathlib
import struct
import sys
import zlib

import jax
from jax import export
import numpy as np
from PIL import Image
from PIL import ImageOps

# What Pillow's readers were seen to raise on damaged files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
    struct.error, zlib.error, Image.DecompressionBombError)


def read(path, about):
  """An image file of 8 bits as uint8 [S, S, C], as evaluation reads it."""
  data = pathlib.Path(path).read_bytes()
  try:
    with Image.open(io.BytesIO(data)) as image:
      return prepare(image, about)
  except _DAMAGE as error:
    raise OSError(f'{path} cannot be decoded ({type(error).__name__}: {error})'
                  ) from error


def prepare(image, about):
  """An opened image upright, resized and its centre cropped."""
  size, resize = about['size'], about['resize']
  # A JPEG can be decoded at a half, quarter or eighth of its size at a fraction
  # of the time. Evaluation does, and other pixels would be other logits.
  short = min(image.size)
  if short > 2 * resize:
    scale = 2 * resize / short
    image.draft(None, tuple(int(side * scale) + 1 for side in image.size))
  image = ImageOps.exif_transpose(image)
  if image.mode == 'F' or image.mode.startswith('I'):
    raise ValueError(f'pixels of mode {image.mode}; save it with 8 bits')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB' if about['channels'] == 3 else 'L')
  scale = resize / min(image.size)
  image = image.resize(
      [max(round(side * scale), resize) for side in image.size],
      Image.Resampling[about['interpolation'].upper()])
  # Evaluation crops twice, and each time half a pixel is rounded down.
  left, top = ((side - resize) // 2 + (resize - size) // 2
               for side in image.size)
  image = image.crop((left, top, left + size, top + size))
  return np.asarray(image).reshape(size, size, -1)


def load(path):
  return export.deserialize(bytearray(path.read_bytes()))


def batches(images, exported, any_size):
  """Yields batches as large as a program takes, and how many are images."""
  size = exported.in_avals[0].shape[0]  # a number, or a symbol for any
  step = size if isinstance(size, int) else any_size
  for start in range(0, len(images), step):
    batch = images[start:start + step]
    empty = step - len(batch)
    yield np.pad(batch, [(0, empty), (0, 0), (0, 0), (0, 0)]), len(batch)


def run_program(path, about, images):
  """Yields logits [K] of each image, and which share of the layers ran."""
  exported = load(path)
  more = [] if about['threshold'] is None else [np.float32(about['threshold'])]
  for batch, num in batches(images, exported, len(images)):
    logits, keep = map(np.asarray, exported.call(batch, *more))
    for y, ran in zip(logits[:num], keep):
      yield y, f'{ran.mean():.0%} of the adaptive layers ran'


def run_stages(path, about, images):
  """Yields logits [K] of each image at the exit that it left at, and which.

  The stages of a batch end when its last image has left.
  """
  stages = [load(path.with_name(f'stage_{i}'))
            for i in range(about['num_stages'])]
  calls = [jax.jit(stage.call) for stage in stages]
  for batch, num in batches(images, stages[0], 1):
    carry, memory, left = (), None, {}
    for k, call in enumerate(calls):
      *carry, logits = call(batch, *carry)
      logits = np.asarray(logits)
      sure, memory = confidence(about['rule'], logits, memory)
      for i in range(num):
        if k + 1 == len(calls) or sure[i] > about['thresholds'][k]:
          left.setdefault(i, (logits[i], k))
      if len(left) == num:
        break
    for i in range(num):
      y, k = left[i]
      macs = about.get('stage_macs')
      spent = f', {sum(macs[:k + 1]):.3g} MACs' if macs else ''
      yield y, f'exit {k} of 0 to {len(calls) - 1}{spent}'


def confidence(rule, logits, memory):
  """How sure an exit is; larger is surer.

  Args:
    rule: as in the .json.
    logits: [B, K].
    memory: what this function returned at the exit before, None at the first.

  Returns:
    (confidence [B], memory).
  """
  if rule == 'patience':  # exits in a row of one class
    label = logits.argmax(-1)
    before, count = memory or (label, 0)
    count = np.where(label == before, count, 0) + 1
    return count, (label, count)
  if rule == 'agreement':  # of the numbers of two exits in a row
    before = np.inf if memory is None else memory
    return -np.abs(logits - before).max(-1), logits
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  if rule == 'entropy':  # negated, in nats
    return (p * np.log(np.where(p > 0, p, 1))).sum(-1), None
  second, first = np.sort(p)[:, -2:].T
  return {'max_probability': first, 'margin': first - second}[rule], None


def describe(y, about):
  """The number of a regression, or the name of the likeliest class."""
  if about.get('unit') is not None:
    return f'{y[0]:.3f} {about["unit"]}'
  label = int(y.argmax())
  name = about['class_names'][label] if about['class_names'] else label
  return f'{name} ({y[label]:.3f})'


def main(path, *files):
  path = pathlib.Path(path)
  path = path / 'stage_0' if path.is_dir() else path
  described = pathlib.Path(f'{path}.json')
  if not (path.exists() and described.exists()):
    raise SystemExit(f'error: {path} and {described} must stand side by side, '
                     f'as export.py writes them')
  about = json.loads(described.read_text())
  images = np.stack([read(file, about['images']) for file in files])
  run = run_stages if about['mode'] == 'stages' else run_program
  for file, (y, remark) in zip(files, run(path, about, images)):
    print(f'{file}: {describe(y, about)}, {remark}')


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  try:
    main(*sys.argv[1:])
  except OSError as error:
    sys.exit(f'error: {error}')
