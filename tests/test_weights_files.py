"""Files that are no weights, or another model's; preprocessing."""

import io
import json
import pickle
import shutil
import sys
import types
import zipfile

from adavit_jax import models
from adavit_jax import weights
import jax
import numpy as np
import pytest
import safetensors.numpy
from test_weights import golden_model
from test_weights import path

KEY = jax.random.key(0)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


class Bomb:
  """Creates a file when it is unpickled."""

  def __init__(self, trace):
    self.trace = trace

  def __reduce__(self):
    return open, (str(self.trace), 'w')


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.pth'])
def test_pickles_are_not_executed(tmp_path, suffix):
  trace, file = tmp_path / 'trace', tmp_path / f'a{suffix}'
  file.write_bytes(pickle.dumps({'model': Bomb(trace)}))
  with pytest.raises(ValueError, match='another kind of file|needs torch'):
    weights.read(file)
  assert not trace.exists()
  pickle.loads(file.read_bytes())
  assert trace.exists()  # the bomb works


def test_pickles_inside_npz_are_not_executed(tmp_path):
  trace = tmp_path / 'trace'
  np.savez(tmp_path / 'a.npz', x=np.array([Bomb(trace)], dtype=object))
  with pytest.raises(ValueError, match='a.npz.*allow_pickle'):
    weights.read(tmp_path / 'a.npz')
  assert not trace.exists()


@pytest.mark.parametrize('name', ['timm_vit', 'augreg'])
@pytest.mark.parametrize('keep', [0., 0.001, 0.5, 0.999])
def test_truncated_files(tmp_path, name, keep):
  data = path(name).read_bytes()
  file = tmp_path / path(name).name
  file.write_bytes(data[:int(keep * len(data))])
  with pytest.raises(ValueError, match=file.name):
    weights.read(file)


def test_an_array_larger_than_its_npz_is_not_allocated(tmp_path):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      file, dict(descr='<f4', fortran_order=False, shape=(10**6, 10**6)))
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('x.npy', file.getvalue() + bytes(100))
  with pytest.raises(ValueError, match='a.npz.*x.npy'):  # not a MemoryError
    weights.read(tmp_path / 'a.npz')


def test_a_flipped_bit_in_npz_is_noticed(tmp_path):
  data = bytearray(path('augreg').read_bytes())
  data[len(data) // 2] ^= 1
  (tmp_path / 'a.npz').write_bytes(data)
  with pytest.raises(ValueError, match='a.npz'):
    weights.read(tmp_path / 'a.npz')


def test_paths_that_are_no_weights(tmp_path):
  with pytest.raises(ValueError, match=f'{tmp_path} .*safetensors'):
    weights.read(tmp_path)
  with pytest.raises(ValueError, match='nope.npz'):
    weights.read(tmp_path / 'nope.npz')
  (tmp_path / 'a.h5').write_bytes(b'x')
  with pytest.raises(ValueError, match=r'a\.h5.*\.safetensors'):
    weights.read(tmp_path / 'a.h5')
  np.savez(tmp_path / 'a.npz', x=np.zeros(2))
  with pytest.raises(ValueError, match=r'a\.npz.*\bx\b'):
    weights.load(golden_model(''), tmp_path / 'a.npz', KEY)


def test_torch_files_name_the_fix_without_torch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'a.pth').write_bytes(b'x')
  with pytest.raises(ValueError, match='pip install torch'):
    weights.read(tmp_path / 'a.pth')


@pytest.mark.parametrize('key', ['model', 'state_dict', None])
def test_torch_files(tmp_path, key):
  torch = pytest.importorskip('torch')
  want = weights.read(path('timm_vit')).tensors
  state = {k: torch.from_numpy(x.copy()) for k, x in want.items()}
  torch.save({key: state, 'epoch': 3} if key else state, tmp_path / 'a.pth')
  got = weights.read(tmp_path / 'a.pth').tensors
  jax.tree.map(np.testing.assert_array_equal, got, want)
  data = (tmp_path / 'a.pth').read_bytes()
  (tmp_path / 'a.pth').write_bytes(data[:len(data) // 2])
  with pytest.raises(ValueError, match=r'a\.pth'):
    weights.read(tmp_path / 'a.pth')


def test_hub(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match='pip install huggingface_hub'):
    weights.read('hf://me/vit')
  asked = []

  def snapshot_download(repo, allow_patterns):
    asked.append((repo, allow_patterns[0]))
    if repo == 'me/gone':
      raise FileNotFoundError('404')
    shutil.copy(path('timm_vit'), tmp_path / 'model.safetensors')
    return str(tmp_path)

  hub = types.ModuleType('huggingface_hub')
  hub.__spec__ = types.SimpleNamespace()
  hub.snapshot_download = snapshot_download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  assert 'cls_token' in weights.read('hf://me/vit').tensors
  assert asked == [('me/vit', 'model.safetensors')]
  with pytest.raises(ValueError, match='hf://me/gone.*404'):
    weights.read('hf://me/gone')
  with pytest.raises(ValueError, match='hf://vit'):
    weights.read('hf://vit')


def message(model, file):
  with pytest.raises(ValueError) as error:
    weights.load(model, file, KEY)
  return str(error.value)


def test_all_that_does_not_fit_is_in_one_message():
  file = weights.read(path('timm_vit'))
  tensors = {**file.tensors, 'norm.weight': np.zeros(7, np.float32),
             'norm.bias': np.zeros(16, np.int8)}
  del tensors['blocks.1.norm1.bias']
  for i in range(3):
    tensors[f'blocks.{i}.ls1.gamma'] = np.zeros(16, np.float32)
  text = message(golden_model(''), file._replace(tensors=tensors))
  assert text.startswith(f'{path("timm_vit")} (timm / DeiT layout) does not')
  assert text.split('\n  ')[1:] == [
      'missing in the file:', '  blocks.1.norm1.bias [16]',
      'in the file, but not in the model:', '  blocks.{0,1,2}.ls1.gamma [16]',
      'of the wrong shape:', '  norm.weight [7] in the file, [16] in the model',
      'not floating-point:', '  norm.bias int8']


@pytest.mark.parametrize('name', ['timm_vit', 'hf_vit', 'augreg'])
def test_other_sizes_are_named(name):
  file = weights.read(path(name))
  text = message(golden_model('', depth=4), file)
  assert 'is of a model with depth=3 (not 4): ' in text
  text = message(golden_model('', depth=4, width=8, channels=1), file)
  assert 'depth=3 (not 4), channels=3 (not 1), width=16 (not 8)' in text
  text = message(golden_model('', patch_size=6), file)
  assert 'with patch_size=4 (not 6): ' in text


def test_heads_of_npz_are_checked():
  text = message(golden_model('', num_heads=4), path('augreg'))
  assert '/query/kernel [16, 2, 8] in the file, [16, 4, 4] in the' in text


@pytest.mark.parametrize('name', ['timm_deit_distilled', 'hf_deit'])
def test_distillation_tokens_must_agree(name):
  text = message(golden_model(''), path(name))
  assert 'create a distilled one, e.g. deit_small_distilled_patch16_224' in text


def test_plain_weights_for_a_distilled_model():
  for name in ('timm_vit', 'hf_vit', 'augreg'):
    text = message(golden_model('', distillation=True), path(name))
    assert 'has no distillation token' in text


def test_conv_stem_has_no_foreign_weights():
  model = models.create('vit_cifar_conv8_32')
  assert "stem='conv'" in message(model, path('timm_vit'))


@pytest.mark.parametrize('name, model, want', [
    ('timm_deit_distilled', '', (*IMAGENET, 'bicubic', 0.9)),
    ('timm_vit', 'deit_small_patch16_224', (*IMAGENET, 'bicubic', 0.9)),
    ('timm_deit', 'vit_small_patch16_224', (*HALF, 'bicubic', 0.9)),
    ('timm_deit', '', (*IMAGENET, 'bicubic', 0.9)),  # by the file's name
    ('timm_vit', '', (*HALF, 'bicubic', 0.9)),
    ('hf_vit', '', (*HALF, 'bilinear', 1.)),
    ('hf_vit', 'deit_small_patch16_224', (*IMAGENET, 'bicubic', 0.875)),
    ('hf_deit_teacher', '', (*IMAGENET, 'bicubic', 0.875)),
    ('augreg', 'deit_small_patch16_224', (*HALF, 'bicubic', 0.9)),
    ('big_vision', '', (*HALF, 'bicubic', 0.9))])
def test_preprocessing_of_each_family(name, model, want):
  assert weights.preprocessing(path(name), model) == want


@pytest.mark.parametrize('file', [
    'deit-tiny-patch16-224/model.safetensors', 'vit/DeiT.safetensors'])
def test_preprocessing_of_a_plain_deit_in_hugging_faces_layout(tmp_path, file):
  file = tmp_path / file
  file.parent.mkdir()
  shutil.copy(path('hf_vit'), file)
  assert weights.preprocessing(file) == (*IMAGENET, 'bicubic', 0.875)


@pytest.mark.parametrize('name, patches', [
    ('timm_deit_distilled', 'patch_embed.proj.weight'),
    ('augreg', 'embedding/kernel')])
def test_crop_of_large_images(name, patches):
  file = weights.read(path(name))
  x = file.tensors[patches]
  wide = [128 if s == 4 else s for s in x.shape]  # 3 x 128 pixels
  tensors = {**file.tensors, patches: np.zeros(wide, np.float32)}
  assert weights.preprocessing(file._replace(tensors=tensors)).crop == 1.


def test_preprocessing_beside_the_file(tmp_path):
  file = tmp_path / 'model.safetensors'
  shutil.copy(path('hf_vit'), file)
  (tmp_path / 'config.json').write_text('{"hidden_size": 16}')
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(dict(
      size={'height': 256, 'width': 256}, do_center_crop=True, crop_size=192,
      resample=3, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1])))
  want = ((0.1, 0.2, 0.3), (1, 1, 1), 'bicubic', 0.75)
  assert weights.preprocessing(file) == want
  shutil.copy(path('timm_vit'), file)
  (tmp_path / 'config.json').write_text(json.dumps(dict(pretrained_cfg=dict(
      mean=[0, 0, 0], std=[1, 1, 1], interpolation='bilinear', crop_pct=0.8))))
  assert weights.preprocessing(file) == ((0,) * 3, (1,) * 3, 'bilinear', 0.8)
  (tmp_path / 'config.json').write_text('{"pretrained_cfg": {}}')
  with pytest.raises(ValueError, match='config.json: .*config.data.mean'):
    weights.preprocessing(file)


def test_preprocessing_travels_with_saved_weights(tmp_path):
  model = golden_model('')
  params = weights.load(model, path('timm_vit'), KEY)
  want = weights.Preprocessing((0.1, 0.2, 0.3), (1., 2., 3.), 'bilinear', 0.5)
  file = tmp_path / 'deit.safetensors'
  weights.save(file, model, params, preprocessing=want)
  assert weights.preprocessing(file) == want
  # Nothing of it is in the way of another reader.
  assert 'cls_token' in safetensors.numpy.load_file(file)
