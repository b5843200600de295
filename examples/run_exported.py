"""Classifies images with programs written by export.py:

  python examples/run_exported.py FILE IMAGE...
  python examples/run_exported.py DIRECTORY IMAGE...  # from --mode=stages

Requires NumPy and Pillow, but not adavit_jax. StableHLO files require jax and
flatbuffers, ONNX files onnxruntime.
"""

import contextlib
import io
import json
import pathlib
import sys

import numpy as np
from PIL import Image

# EXIF orientation: what turns the pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}


def read(path, spec):
  """Reads an 8-bit image file as uint8 [S, S, C], as evaluation does.

  Args:
    path: path of the file.
    spec: `images` of the .json file.
  """
  data = pathlib.Path(path).read_bytes()
  try:
    with Image.open(io.BytesIO(data)) as image:
      return prepare(image, spec)
  except Exception as error:  # decoders raise errors of any type
    raise OSError(f'{path} cannot be decoded ({type(error).__name__}: {error})'
                  ) from error


def prepare(image, spec):
  """Applies the EXIF orientation, resizes and crops the center."""
  size, resize = spec['size'], spec['resize']
  # As in evaluation, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which
  # is faster; decoding at full size would give other pixels and logits.
  short = min(image.size)
  if short > 2 * resize:
    scale = 2 * resize / short
    image.draft(None, tuple(int(side * scale) + 1 for side in image.size))
  image.load()
  with contextlib.suppress(Exception):  # damaged EXIF, in many ways
    image = image.transpose(_UPRIGHT[image.getexif()[274]])
  if image.mode == 'F' or image.mode.startswith('I'):
    raise ValueError(f'pixels have mode {image.mode}; save it with 8 bits')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB' if spec['channels'] == 3 else 'L')
  scale = resize / min(image.size)
  image = image.resize(
      [max(round(side * scale), resize) for side in image.size],
      Image.Resampling[spec['interpolation'].upper()])
  # Evaluation crops twice and rounds half pixels down each time.
  left, top = ((side - resize) // 2 + (resize - size) // 2
               for side in image.size)
  image = image.crop((left, top, left + size, top + size))
  return np.asarray(image).reshape(size, size, -1)


def load(path, format):
  """Loads a program.

  Args:
    path: path of the file.
    format: `format` of the .json file.

  Returns:
    (function of arrays that returns a list of arrays, batch size), the size an
    int, or a symbol for any size.
  """
  try:
    return (load_onnx if format == 'onnx' else load_stablehlo)(path)
  except ImportError:
    raise
  except Exception as error:  # of any type, where bytes are missing
    raise ValueError(f'{path} is damaged, or of another version of {format} '
                     f'({type(error).__name__}: {error})') from error


def load_stablehlo(path):
  import jax  # not needed for ONNX
  from jax import export
  exported = export.deserialize(bytearray(path.read_bytes()))
  return jax.jit(exported.call), exported.in_avals[0].shape[0]


def load_onnx(path):
  import onnxruntime  # not needed for StableHLO
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors: it warns of each unused constant
  session = onnxruntime.InferenceSession(
      path.read_bytes(), options, providers=['CPUExecutionProvider'])
  used = {x.name for x in session.get_inputs()}

  def call(images, *carry):
    given = {'images': images,
             **{f'carry_{i}': x for i, x in enumerate(carry)}}
    return session.run(None, {name: given[name] for name in used})

  return call, session.get_inputs()[0].shape[0]


def batches(images, size, any_size):
  """Yields (batch of the program's size, padded; number of its images)."""
  step = size if isinstance(size, int) else any_size
  for start in range(0, len(images), step):
    batch = images[start:start + step]
    pad = step - len(batch)
    yield np.pad(batch, [(0, pad), (0, 0), (0, 0), (0, 0)]), len(batch)


def run_program(path, info, images):
  """Yields the logits [K] of each image and the share of layers that ran."""
  call, size = load(path, info['format'])
  number = info.get('threshold', info.get('price'))  # of a policy
  args = [] if number is None else [np.float32(number)]
  for batch, num in batches(images, size, len(images)):
    logits, keep = map(np.asarray, call(batch, *args))
    for y, ran in zip(logits[:num], keep):
      yield y, f'{ran.mean():.0%} of the adaptive layers ran'


def run_stages(path, info, images):
  """Yields the logits [K] of each image at its exit, and that exit.

  A batch stops once all of its images have left.
  """
  calls, sizes = zip(*(
      load(path.with_name(f'stage_{i}{path.suffix}'), info['format'])
      for i in range(info['num_stages'])))
  for batch, num in batches(images, sizes[0], 1):
    carry, memory, left = (), None, {}
    for k, call in enumerate(calls):
      *carry, logits = call(batch, *carry)
      logits = np.asarray(logits)
      sure, memory = confidence(info['rule'], logits, memory)
      for i in range(num):
        if k + 1 == len(calls) or sure[i] > info['thresholds'][k]:
          left.setdefault(i, (logits[i], k))
      if len(left) == num:
        break
    for i in range(num):
      y, k = left[i]
      macs = info.get('stage_macs')
      total = f', {sum(macs[:k + 1]):.3g} MACs' if macs else ''
      yield y, f'exit {k} of 0 to {len(calls) - 1}{total}'


def confidence(rule, logits, memory):
  """Confidence at an exit; higher is more confident.

  Args:
    rule: `rule` of the .json file.
    logits: [B, K].
    memory: memory returned for the previous exit, None at the first.

  Returns:
    (confidence [B], memory).
  """
  if rule == 'patience':  # number of consecutive exits with the same class
    label = logits.argmax(-1)
    before, count = memory or (label, 0)
    count = np.where(label == before, count, 0) + 1
    return count, (label, count)
  if rule == 'agreement':  # negated difference of two consecutive exits
    before = np.inf if memory is None else memory
    return -np.abs(logits - before).max(-1), logits
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  if rule == 'entropy':  # negated, in nats
    return (p * np.log(np.where(p > 0, p, 1))).sum(-1), None
  second, first = np.sort(p)[:, -2:].T
  return {'max_probability': first, 'margin': first - second}[rule], None


def describe(y, info):
  """Formats the output of a regression, or the predicted class."""
  if info.get('unit') is not None:
    return f'{y[0]:.3f} {info["unit"]}'
  label = int(y.argmax())
  name = info['class_names'][label] if info['class_names'] else label
  return f'{name} ({y[label]:.3f})'


def main(path, *files):
  path = pathlib.Path(path)
  if path.is_dir():
    first = [f for f in (path / 'stage_0', path / 'stage_0.onnx') if f.exists()]
    if len(first) > 1:
      raise SystemExit(f'error: {path} has stages in two formats; give '
                       f'{first[0]} or {first[1]}')
    path = first[0] if first else path / 'stage_0'
  info_path = pathlib.Path(f'{path}.json')
  if not (path.exists() and info_path.exists()):
    raise SystemExit(f'error: {path} and {info_path} must both exist, as '
                     f'written by export.py')
  try:
    info = json.loads(info_path.read_text())
  except ValueError as error:
    raise ValueError(f'{info_path} is damaged ({error})') from error
  images = np.stack([read(file, info['images']) for file in files])
  run = run_stages if info['mode'] == 'stages' else run_program
  for file, (y, remark) in zip(files, run(path, info, images)):
    print(f'{file}: {describe(y, info)}, {remark}')


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  try:
    main(*sys.argv[1:])
  except (ImportError, OSError, ValueError) as error:  # also: other platforms
    sys.exit(f'error: {error}')
