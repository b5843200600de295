"""Classifies images with a file of export.py:

  python examples/run_exported.py FILE IMAGE...

Needs jax, flatbuffers, NumPy and Pillow, and none of the model's code.
"""

import json
import pathlib
import sys

from jax import export
import numpy as np
from PIL import Image
from PIL import ImageOps


def read(path, about):
  """An 8-bit image file as uint8 [S, S, C], resized and its centre cropped."""
  image = ImageOps.exif_transpose(Image.open(path))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB' if about['channels'] == 3 else 'L')
  scale = about['resize'] / min(image.size)
  image = image.resize([round(side * scale) for side in image.size],
                       Image.Resampling[about['interpolation'].upper()])
  left, top = ((side - about['size']) // 2 for side in image.size)
  image = image.crop((left, top, left + about['size'], top + about['size']))
  return np.asarray(image).reshape(about['size'], about['size'], -1)


def main(path, *files):
  exported = export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
  about = json.loads(pathlib.Path(f'{path}.json').read_text())
  if about['mode'] == 'stages':
    sys.exit(f'{path} is one stage of a cascade: call them in turn, '
             f'(images, carry) -> (carry, logits), until the rule and the '
             f'thresholds in {path}.json let an image leave')
  images = np.stack([read(file, about['images']) for file in files])
  size = exported.in_avals[0].shape[0]  # a number, or a symbol for any
  step = size if isinstance(size, int) else len(images)
  more = [] if about['threshold'] is None else [np.float32(about['threshold'])]
  for start in range(0, len(images), step):
    batch = images[start:start + step]
    num = len(batch)
    batch = np.pad(batch, [(0, step - num), (0, 0), (0, 0), (0, 0)])
    logits, keep = map(np.asarray, exported.call(batch, *more))
    for file, y, ran in zip(files[start:], logits[:num], keep):
      label = int(y.argmax())
      name = about['class_names'][label] if about['class_names'] else label
      print(f'{file}: {name} ({y[label]:.3f}), {ran.mean():.0%} of the '
            f'adaptive layers ran')


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(*sys.argv[1:])
