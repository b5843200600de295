"""Tiny ImageNet's validation images go to their classes, once and whole."""

from adavit_jax import data
from adavit_jax.data import tiny_imagenet
from PIL import Image
import pytest

CLASSES = ('n01443537', 'n01629819')


@pytest.fixture
def root(tmp_path):
  """As the archive has it: four validation images of two classes."""
  for name in CLASSES:
    folder = tmp_path / 'train' / name / 'images'
    folder.mkdir(parents=True)
    for i in range(4):
      Image.new('RGB', (8, 8)).save(folder / f'{name}_{i}.png')
    (folder.parent / f'{name}_boxes.txt').write_text('x\t0\t0\t7\t7\n')
  (tmp_path / 'test' / 'images').mkdir(parents=True)
  Image.new('RGB', (8, 8)).save(tmp_path / 'test' / 'images' / 'test_0.png')
  (tmp_path / 'val' / 'images').mkdir(parents=True)
  lines = []
  for i in range(4):
    Image.new('RGB', (8, 8), (60 * i,) * 3).save(
        tmp_path / 'val' / 'images' / f'val_{i}.png')
    lines.append(f'val_{i}.png\t{CLASSES[i % 3 == 0]}\t0\t0\t7\t7\n')
  (tmp_path / 'val' / 'val_annotations.txt').write_text(''.join(lines))
  return tmp_path


def test_the_folder_reader_reads_it(root, tmp_path_factory):
  assert tiny_imagenet.arrange(root) == 4
  assert tiny_imagenet.arrange(root) == 0
  config = data.default_config()
  config.update(name='folder', data_dir=str(root), holdout=0.,
                cache_dir=str(tmp_path_factory.mktemp('cache')))
  test = data.load(config, seed=0).test
  values = {int(image.max()): int(label) for image, label in zip(
      test.images(range(4)), test.labels)}
  assert values == {0: 1, 60: 0, 120: 0, 180: 1}


def test_it_goes_on_after_a_kill(root):
  done = root / 'val' / CLASSES[0]
  done.mkdir()
  (root / 'val' / 'images' / 'val_1.png').rename(done / 'val_1.png')
  assert tiny_imagenet.arrange(root) == 3
  assert not (root / 'val' / 'images').exists()


@pytest.mark.parametrize('change, message', [
    (lambda val: (val / 'val_annotations.txt').unlink(),
     'val_annotations.txt does not exist'),
    (lambda val: (val / 'val_annotations.txt').write_text('val_0.png\n'),
     'line 1'),
    (lambda val: (val / 'val_annotations.txt').write_text('val_0.png\t..\t0'),
     'line 1'),
    (lambda val: (val / 'val_annotations.txt').write_text(''), 'is empty'),
    (lambda val: (val / 'val_annotations.txt').write_text('val_0.png\tn9\t0'),
     "class 'n9'"),
    (lambda val: (val / 'images' / 'val_2.png').unlink(), 'val_2.png .*1 of 4'),
    (lambda val: Image.new('RGB', (8, 8)).save(val / 'images' / 'other.png'),
     'other.png'),
])
def test_nothing_is_moved_if_something_is_wrong(root, change, message):
  change(root / 'val')
  before = sorted((root / 'val').rglob('*'))
  with pytest.raises(ValueError, match=message):
    tiny_imagenet.arrange(root)
  assert sorted((root / 'val').rglob('*')) == before
