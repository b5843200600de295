"""Packs a large image set into array_record shards, for `data.name=packed`.

  python -m adavit_jax.data.pack SOURCE DEST

SOURCE is a folder with train/CLASS/* and test/CLASS/* or val/CLASS/*, or
tfds:NAME, prepared as array_record in --data_dir. DEST is a directory on this
machine. The images are copied as they are, in the order of SOURCE, and keep
their held-out images. The same command goes on after a kill, and adds shards
that are missing or of the wrong size. To read every shard of DEST and compare
it with its checksum:

  python -m adavit_jax.data.pack --check DEST
"""

from absl import app
from absl import flags
from absl import logging

from adavit_jax.data import packing

_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'The data_dir of tfds; empty: its default.')
_CHECK = flags.DEFINE_bool(
    'check', False, 'Compares the shards of DEST with their checksums.')


def main(argv):
  if len(argv) != (2 if _CHECK.value else 3):
    raise app.UsageError('give SOURCE and DEST, or --check and DEST')
  try:
    if _CHECK.value:
      packing.check(argv[1])
      logging.info('%s is intact.', argv[1])
    else:
      packing.pack(
          packing.source(argv[1], _DATA_DIR.value), argv[2])
  except (ValueError, OSError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
