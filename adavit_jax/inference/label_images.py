"""Labels images with a pretrained model's own predictions:

  python -m adavit_jax.inference.label_images --weights=FILE \\
      --model=vit_tiny_patch16_224 --data_dir=IMAGES --output=labels.json

IMAGES contains train/ and test/ or val/, with images in any folders below.
With --config.data.labels=labels.json, exits and policies are then trained for
agreement with the model, and every accuracy is that agreement: no image needs a
true label.
"""

from absl import app
from absl import flags
import jax

from adavit_jax import errors
from adavit_jax import models
from adavit_jax import paths
from adavit_jax.data import label_file
from adavit_jax.inference import labeling
from adavit_jax.train import config as config_lib

_WEIGHTS = flags.DEFINE_string(
    'weights', None, 'File of pretrained weights.', required=True)
_MODEL = flags.DEFINE_string(
    'model', None, 'Name of its model.', required=True)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Directory with train/ and test/ or val/.', required=True)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'JSON file to write, for config.data.labels.',
    required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    'num_classes', 1000, 'K, the number of classes of the file.', 2)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images at a time.', 1)


def main(argv):
  if argv[1:]:
    raise app.UsageError(f'unknown arguments {argv[1:]}')
  config = config_lib.default_config()
  # Its head is kept: no phase of these would train another one.
  config.phases = ('warm_start',)
  config.init.weights = _WEIGHTS.value
  config.model.name = _MODEL.value
  config.data.update(name='folder', data_dir=_DATA_DIR.value)
  try:
    output = paths.to_write(_OUTPUT.value, '--output')
    config.data.image_size = models.create(_MODEL.value).image_size
    config.eval_batch_size = (
        _BATCH_SIZE.value + -_BATCH_SIZE.value % jax.device_count())
    labels = labeling.predict(config, _NUM_CLASSES.value)
    label_file.write(output, labels)
  except errors.USER_ERRORS as error:
    raise SystemExit(f'error: {error}') from error
  print(f'wrote {len(labels.labels)} labels to {output}')


if __name__ == '__main__':
  app.run(main)
