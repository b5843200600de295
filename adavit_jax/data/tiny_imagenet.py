"""Arranges the validation images of Tiny ImageNet for `data.name=folder`.

  python -m adavit_jax.data.tiny_imagenet DIR

DIR is the tiny-imagenet-200 of its archive. The archive keeps all validation
images in val/images and their classes in val/val_annotations.txt; this moves
each image to val/CLASS. The same command goes on after a kill, and does nothing
if all are there.
"""

import pathlib

from absl import app
from absl import logging

from adavit_jax import paths


def arrange(directory) -> int:
  """Moves val/images/* to val/CLASS/*, by val/val_annotations.txt.

  Everything is checked before the first image is moved.

  Args:
    directory: that of train/ and val/.

  Returns:
    Number of images that were moved.

  Raises:
    ValueError: if the annotations are missing or damaged, name a class without
      a folder in train/ or an image that is not there, or val/images holds
      other images too.
    OSError: if an image cannot be moved.
  """
  root = pathlib.Path(paths.expanded(directory, 'DIR'))
  annotations = root / 'val' / 'val_annotations.txt'
  if not annotations.is_file():
    raise ValueError(f'{annotations} does not exist: give the directory '
                     f'tiny-imagenet-200 of the archive')
  classes = _read(annotations)
  unknown = sorted(name for name in set(classes.values())
                   if not (root / 'train' / name).is_dir())
  if unknown:
    raise ValueError(f'{annotations} has the class {unknown[0]!r}, but '
                     f"{root / 'train'} has no such folder ({len(unknown)} "
                     f'classes): extract the archive again')
  images = root / 'val' / 'images'
  moves = {images / file: root / 'val' / name / file
           for file, name in classes.items()}
  missing = [old for old, new in moves.items()
             if not old.is_file() and not new.is_file()]
  if missing:
    raise ValueError(f'{missing[0]} does not exist ({len(missing)} of '
                     f'{len(moves)} images): extract the archive again')
  others = ([path for path in sorted(images.iterdir()) if path not in moves]
            if images.is_dir() else [])
  if others:
    raise ValueError(f'{others[0]} has no class in {annotations} '
                     f'({len(others)} files): move it elsewhere')
  moved = 0
  for old, new in moves.items():
    if old.is_file():
      new.parent.mkdir(exist_ok=True)
      old.replace(new)
      moved += 1
  if images.is_dir():
    images.rmdir()  # or it would be a class
  return moved


def _read(path: pathlib.Path) -> dict[str, str]:
  """Returns {file: class} of lines 'file <tab> class <tab> box'."""
  classes = {}
  for number, line in enumerate(
      path.read_text(encoding='utf-8').splitlines(), 1):
    file, *rest = line.split('\t')
    names = file, *rest[:1]
    # A name must not lead out of its folder.
    if len(names) < 2 or any(
        name in ('', '.', '..') or '/' in name or '\\' in name
        for name in names):
      raise ValueError(f'{path}, line {number}, is {line!r}, not a file and '
                       f'its class with a tab between them: extract the '
                       f'archive again')
    classes[file] = rest[0]
  if not classes:
    raise ValueError(f'{path} is empty: extract the archive again')
  return classes


def main(argv):
  if len(argv) != 2:
    raise app.UsageError('give DIR, the directory tiny-imagenet-200')
  try:
    moved = arrange(argv[1])
  except (ValueError, OSError) as error:
    raise SystemExit(f'error: {error}') from error
  logging.info('%d images moved; %s can be read as a folder.', moved, argv[1])


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
