"""A data set for tfds to prepare; importing tfds takes a second."""

import io

from PIL import Image
import tensorflow_datasets as tfds

SIZES = dict(train=12, test=4, validation=2)
BASE = dict(train=0, test=100, validation=200)


class TinyFlags(tfds.core.GeneratorBasedBuilder):
  """Image i of a split is gray BASE + i; its label is i modulo 3."""

  VERSION = tfds.core.Version('1.10.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(dict(
            picture=tfds.features.Image(shape=(6, 6, 3)),
            kind=tfds.features.ClassLabel(names=['red', 'green', 'blue']),
        )),
        supervised_keys=('picture', 'kind'),
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name) for name in SIZES}

  def _generate_examples(self, name):
    for i in range(SIZES[name]):
      # Encoded here, because tfds would do it by TensorFlow.
      picture = io.BytesIO()
      Image.new('RGB', (6, 6), (BASE[name] + i,) * 3).save(picture, 'png')
      picture.seek(0)
      yield i, dict(picture=picture, kind=i % 3)
