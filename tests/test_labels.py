"""Labels of image files, and those that a model predicts."""

import json

from adavit_jax import data
from adavit_jax import weights
from adavit_jax.data import label_file
from adavit_jax.inference import labeling
import jax
import numpy as np
from PIL import Image
import pytest
from states import one_device  # a fixture
import tiny


@pytest.fixture
def root(tmp_path):
  """Images without class folders: three to train, two to test."""
  for i, name in enumerate(('train/a.png', 'train/more/b.png', 'train/c.png',
                            'val/a.png', 'val/b.png')):
    path = tmp_path / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  return tmp_path / 'images'


LABELS = {'train/a.png': 2, 'train/c.png': 0, 'train/more/b.png': 1,
          'val/a.png': 1, 'val/b.png': 2}


def _config(root, labels, **fields):
  config = data.default_config()
  config.update(name='folder', data_dir=str(root), labels=str(labels),
                image_size=8, holdout=0.0, cache_dir=str(root.parent / 'cache'),
                **fields)
  return config


def _written(root, labels):
  path = root.parent / 'labels.json'
  label_file.write(path, label_file.Labels(('x', 'y', 'z'), labels))
  return path


def test_labels_of_a_file_need_no_class_folders(root):
  dataset = data.load(_config(root, _written(root, LABELS)))
  assert dataset.class_names == ('x', 'y', 'z') and dataset.num_classes == 3
  assert dataset.train.labels.tolist() == [2, 0, 1]  # sorted by path
  assert dataset.test.labels.tolist() == [1, 2]
  # Other labels of the same images do not come from the cache.
  other = data.load(_config(root, _written(root, {**LABELS, 'val/a.png': 0})))
  assert other.test.labels.tolist() == [0, 2]


def test_an_image_without_label_is_named(root):
  path = _written(root, {**LABELS})
  Image.new('RGB', (8, 8)).save(root / 'val' / 'new.png')
  with pytest.raises(ValueError, match=r'data\.labels.*val/new\.png'):
    data.load(_config(root, path))


@pytest.mark.parametrize('content', [
    '[]', '{', '{"class_names": ["x"]}', '{"class_names": 3, "labels": {}}',
    json.dumps(dict(class_names=['x'], labels={'train/a.png': 1})),
    json.dumps(dict(class_names=['x'], labels={'train/a.png': 0.5})),
    json.dumps(dict(class_names=['x', 'y'], labels={'train/a.png': True})),
])
def test_a_file_that_holds_no_labels_is_refused(root, content):
  path = root.parent / 'other.json'
  path.write_text(content, encoding='utf-8')
  with pytest.raises(ValueError, match=r'data\.labels'):
    data.load(_config(root, path))


def test_labels_are_for_folders():
  config = data.default_config()
  config.labels = 'labels.json'
  with pytest.raises(ValueError, match=r'data\.labels'):
    data.load(config)


def test_a_model_labels_images_in_their_order(root, one_device):
  model = tiny.model(channels=3, num_classes=5)
  params = tiny.params(model)
  weights.save(root.parent / 'vit.safetensors', model, params,
               preprocessing=weights.Preprocessing(
                   (0.5,) * 3, (0.25,) * 3, 'bilinear', 1.0))
  config = tiny.get_config()
  config.phases = ('warm_start',)
  config.init.weights = str(root.parent / 'vit.safetensors')
  config.data.update(name='folder', data_dir=str(root), crop_padding=0)
  config.eval_batch_size = 2
  labels = labeling.predict(config, 5)
  pixels = np.stack([np.asarray(Image.open(root / name)) for name in LABELS])
  logits = jax.jit(model.apply)(
      {'params': params['backbone']}, (pixels / 255. - 0.5) / 0.25).total
  assert labels.class_names == tuple('01234')
  assert labels.labels == dict(zip(LABELS, logits.argmax(-1).tolist()))
  assert len(set(labels.labels.values())) > 1
  label_file.write(root.parent / 'labels.json', labels)
  assert label_file.read(root.parent / 'labels.json') == labels
