"""Measures a run in a file and writes the results into its card:

  python export.py --workdir=DIR --mode=weights --threshold=T --output=FILE
  python benchmarks/model_card.py --file=FILE --data_dir=DIR \\
      --recipe='python train.py ...' --commit=HASH

The test images run through `adavit_jax.load(FILE)`, so that accuracy and MACs
are those of the rounded parameters.
"""

import json

from absl import app
from absl import flags

from adavit_jax.report import model_card
from adavit_jax.runs import run_file
from adavit_jax import errors

_FILE = flags.DEFINE_string('file', None, 'The file.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Data directory.')
_RECIPE = flags.DEFINE_string('recipe', None, 'Commands that trained the run.',
                              required=True)
_COMMIT = flags.DEFINE_string('commit', None, 'Commit that they ran at.',
                              required=True)
_LICENSE = flags.DEFINE_string('license', 'Apache-2.0', 'Of the parameters.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    card = run_file.describe(
        _FILE.value, recipe=_RECIPE.value, commit=_COMMIT.value,
        license=_LICENSE.value,
        **model_card.measure(_FILE.value, _DATA_DIR.value))
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  print(json.dumps(card, indent=1))


if __name__ == '__main__':
  app.run(main)
